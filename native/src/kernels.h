// The inner loops of the CPU back end. They are compiled once per instruction set and chosen at run time.
#pragma once

#include "ops.h"

namespace ebsynth {

struct Kernels {
  const char *name;
  // Patch errors of the field in rows y0..y1-1.
  void (*errors)(const Level &level, int item, int y0, int y1);
  // One PatchMatch sweep over the tile whose first pixel is (y0, x0) and that ends before (y1, x1).
  void (*sweep)(const Level &level, int item, int y0, int x0, int y1, int x1, bool forward, uint32_t key);
  // A row of patch sums of features, from sums over its patches' columns.
  void (*sum_row)(float *out, const uint32_t *columns, int width, int stride, int patch);
  // BoxSum along a row, and along a strip of columns, in 32 bits and with running sums.
  void (*box_row)(uint32_t *out, const uint32_t *in, int width, int patch, bool repeat);
  void (*box_columns)(uint32_t *out, const uint32_t *in, int height, int width, int columns, int patch, bool repeat);
  // A row of a plain vote; `sum` is scratch of (width + patch - 1) * stride.
  void (*vote_row)(const Vote &op, int item, int y, uint32_t *sum);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;  // only on x86-64

}  // namespace ebsynth
