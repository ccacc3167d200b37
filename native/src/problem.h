// A checked call, in the form that the solver uses for both kinds of call.
#pragma once

#include <string>
#include <vector>

#include "../include/ebsynth.h"
#include "ops.h"

namespace ebsynth {

// An error status to return to the caller.
struct Failure {
  ebsynth_status status;
  std::string message;
};

// Fixed-point weights and the order of channels they require.
struct Weights {
  Layout layout;               // of features
  uint32_t quads[kMaxQuads];   // fixed-point weight of each quad
  double scale;                // integer error = scale * error
};

struct Problem {
  int batch, source_height, source_width, target_height, target_width, style_channels, guide_channels;
  const uint8_t *source_style, *target_style, *source_guides, *target_guides, *modulation;
  Weights weights;
  bool zero_border;  // outside the image is 0; otherwise the nearest pixel is repeated
  bool painted;  // the target's style is painted by voting

  int levels;
  std::vector<int> patches;  // of each round of search (and vote), at every level; may be empty
  int largest_patch;         // of those; that of the extra pass is never larger
  int sweeps;
  int radius;                // 0 = the whole source
  double uniformity;
  int threshold;
  bool weighted_vote, extra_pass;
  ebsynth_start start;
  uint64_t seed;

  uint8_t *image;  // or null
  int32_t *nnf;    // or null
  float *error;    // or null
};

}  // namespace ebsynth
