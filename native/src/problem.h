// A checked call, as the solver wants it: both public kinds of call become one.
#pragma once

#include <string>
#include <vector>

#include "../include/ebsynth.h"
#include "ops.h"

namespace ebsynth {

// A status on its way to the caller.
struct Failure {
  ebsynth_status status;
  std::string message;
};

// Weights as fixed-point numbers, and the order of channels that they ask for.
struct Weights {
  Layout layout;               // of features
  uint32_t quads[kMaxQuads];   // fixed-point weight of each quad
  double scale;                // integer error = scale * error
};

struct Problem {
  int batch, source_height, source_width, target_height, target_width, style_channels, guide_channels;
  const uint8_t *source_style, *target_style, *source_guides, *target_guides, *modulation;
  Weights weights;
  bool zero_border;  // beyond the border lies 0; otherwise the border repeats
  bool painted;  // the target's style is voted from the source's

  int levels;
  std::vector<int> patches;  // of each round of search (and vote), at every level; may be empty
  int largest_patch;         // of those; that of the extra pass is smaller still
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
