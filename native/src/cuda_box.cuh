// Box sums with CUDA, all passes in one launch. A block sums along rows into shared memory, and then along columns. To sum
// twice along an axis is to sum once with weights that fall with the distance.

#pragma once

#include <cuda_runtime.h>

#include "../include/ebsynth.h"
#include "ops.h"

namespace ebsynth {

namespace {

constexpr int kBoxSide = 32, kBoxRows = 8;                   // pixels a side that a block computes, rows at a time
constexpr int kBoxReach = 2 * (EBSYNTH_MAX_PATCH_SIZE / 2);  // pixels around them that it may need

struct Box {
  uint32_t *out;
  const uint32_t *in;
  int batch, height, width, radius;
  bool twice;  // the second time, the nearest pixel is repeated outside

  __device__ int reach() const { return twice ? 2 * radius : radius; }

  // How often a value counts in the sum at `to`: once or, with `twice`, once for each pixel at most `radius` away from both.
  // The first and the last pixel also stand for those beyond them.
  __device__ int weight(int from, int to, int last) const {
    if (!twice) return 1;
    const int common = min(min(from, to) + radius, last) - max(max(from, to) - radius, 0) + 1;
    const int before = from <= radius ? max(radius - to, 0) : 0, after = from >= last - radius ? max(to + radius - last, 0) : 0;
    return common + before + after;
  }

  // The weighted sum along an axis around a value, which is number `at`. It saturates, and so does all that contains such a
  // sum, which makes the order of passes irrelevant.
  __device__ uint32_t sum(const uint32_t *values, int step, int at, int last) const {
    uint64_t total = 0, running = 0;
    if (twice && min(at, last - at) >= reach()) {  // away from the ends, weights rise and fall by one
      for (int k = 0; k <= reach(); ++k) total += running += values[-k * step];
      running = 0;
      for (int k = 1; k <= reach(); ++k) total += running += values[k * step];
    } else {
      for (int k = max(-reach(), -at); k <= min(reach(), last - at); ++k) total += (uint64_t)weight(at + k, at, last) * values[k * step];
    }
    return total < 0xffffffffu ? (uint32_t)total : 0xffffffffu;
  }
};

__global__ void __launch_bounds__(kBoxSide * kBoxRows) box_kernel(const __grid_constant__ Box box) {
  __shared__ uint32_t row_sums[kBoxSide + 2 * kBoxReach][kBoxSide];
  const int x = blockIdx.x * kBoxSide + threadIdx.x, top = blockIdx.y * kBoxSide, bottom = min(top + kBoxSide, box.height);
  const int first = max(top - box.reach(), 0), end = min(bottom + box.reach(), box.height);  // of the rows that it needs
  for (unsigned item = blockIdx.z; item < (unsigned)box.batch; item += gridDim.z, __syncthreads()) {
    for (int y = first + threadIdx.y; x < box.width && y < end; y += kBoxRows)
      row_sums[y - first][threadIdx.x] = box.sum(box.in + place(item, y, x, box.height, box.width), 1, x, box.width - 1);
    __syncthreads();
    for (int y = top + threadIdx.y; x < box.width && y < bottom; y += kBoxRows)
      box.out[place(item, y, x, box.height, box.width)] = box.sum(&row_sums[y - first][threadIdx.x], kBoxSide, y, box.height - 1);
  }
}

}  // namespace

}  // namespace ebsynth
