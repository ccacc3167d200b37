// Comparing and searching patches with CUDA. A warp processes a pixel. Its lanes form teams, each of which compares the
// patches of one candidate. A block processes a tile along antidiagonals.

#pragma once

#include <cuda_runtime.h>

#include "ops.h"

namespace ebsynth {

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kTeam = 8;               // lanes per patch
constexpr int kTeams = kWarp / kTeam;  // candidates per warp at a time
constexpr int kBlock = 256;
constexpr int64_t kNever = INT64_MAX;

// Bytes of features that a lane processes together.
template <int Count>
struct alignas(kQuad * Count) Words {
  uint32_t word[Count];
};

// The current match of a target pixel.
struct Choice {
  uint32_t entry;
  int64_t error, cost;
};

// One search of one item, from the view of one lane. The lanes of a team read adjacent words of a patch, row by row. Each
// lane reads the same words of every pixel, so it needs only their weights.
template <int Stride, bool Modulated>
struct Search {
  static constexpr int kWords = Stride < 16 ? Stride / kQuad : 4;  // per lane
  static constexpr int kParts = Stride / (kQuad * kWords);         // lanes per pixel
  static constexpr int kPixels = kTeam / kParts;                   // per team at a time
  static constexpr int kAtOnce = Modulated ? 2 : 4;                // concurrent loads of each patch per lane
  using Part = Words<kWords>;

  const Level &level;
  const unsigned area, inverse;                // inverse: 2^32 / patch, rounded up, to divide by the patch size
  const unsigned source_pitch, target_pitch;   // bytes per row ...
  const unsigned source_gap, target_gap;       // ... and bytes between rows of a patch
  const int item, team, pixel;
  const uint8_t *source, *target;

  __device__ Search(const Level &l, int item_)
      : level(l), area(l.patch * l.patch), inverse(0xffffffffu / l.patch + 1),
        source_pitch((l.source_width + 2 * l.border) * Stride), target_pitch((l.target_width + 2 * l.border) * Stride),
        source_gap(source_pitch - l.patch * Stride), target_gap(target_pitch - l.patch * Stride),
        item(item_), team(threadIdx.x % kWarp / kTeam), pixel(threadIdx.x % kTeam / kParts) {
    // Features begin with the first word of this lane in the patch of pixel (0, 0).
    const int word = threadIdx.x % kParts * kWords, inset = l.border - l.patch / 2;
    const size_t first = (inset + pixel) * Stride + word * kQuad;
    source = l.source + ((size_t)item * (l.source_height + 2 * l.border) + inset) * source_pitch + first;
    target = l.target + ((size_t)item * (l.target_height + 2 * l.border) + inset) * target_pitch + first;
  }

  __device__ const uint8_t *at_target(int y, int x) const { return target + (size_t)y * target_pitch + x * Stride; }
  __device__ const uint8_t *at_source(uint32_t e) const { return source + (size_t)row(e) * source_pitch + column(e) * Stride; }

  __device__ int64_t cost_of_use(uint32_t e) const {
    if (!level.usage) return 0;
    return (int64_t)level.usage_cost * level.usage[place(item, row(e), column(e), level.source_height, level.source_width)];
  }

  // Adds the squared differences of four bytes.
  static __device__ uint32_t add_squares(uint32_t sum, uint32_t a, uint32_t b, uint32_t modulation) {
    const uint32_t d = __vabsdiffu4(a, b);
    if constexpr (Modulated) {
      for (int shift = 0; shift < 32; shift += 8) sum += (d >> shift & 255) * (d >> shift & 255) * (modulation >> shift & 255);
      return sum;
    } else {
      return __dp4a(d, d, sum);
    }
  }

  // This lane's share of the error of some pixels of a patch, from pixel p on. The sums fit in 32 bits, modulated or not.
  __device__ int64_t share(const uint8_t *t, const uint8_t *m, const uint8_t *s, unsigned p) const {
    Part target[kAtOnce] = {}, modulation[kAtOnce] = {}, source[kAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k, p += kPixels) {
      if (p >= area) continue;
      const unsigned y = __umulhi(p, inverse);  // the pixel's row in the patch
      target[k] = *(const Part *)(t + k * kPixels * Stride + (uint64_t)y * target_gap);
      if (Modulated) modulation[k] = *(const Part *)(m + k * kPixels * Stride + (uint64_t)y * target_gap);
      source[k] = *(const Part *)(s + k * kPixels * Stride + (uint64_t)y * source_gap);
    }
    int64_t total = 0;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      uint32_t sum = 0;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) sum = add_squares(sum, target[k].word[w], source[k].word[w], modulation[k].word[w]);
      total += (int64_t)((uint64_t)sum * level.weights[threadIdx.x % kParts * kWords + w]);
    }
    return total;
  }

  // The patch error if it is below `limit`, else any value that is not. Each team has its own patches and limit.
  __device__ int64_t error(const uint8_t *t, const uint8_t *s, int64_t limit) const {
    asm("" : "+l"(t), "+l"(s));  // keeps the compiler from recomputing every address from the kernel's arguments
    int64_t mine = 0, total = 0;
#pragma unroll 1
    for (unsigned first = 0; first < area && __any_sync(kAll, total < limit); first += kAtOnce * kPixels) {
      const unsigned at = first * Stride;
      const uint8_t *m = Modulated ? level.modulation + (t - level.target) + at : nullptr;
      if (total < limit) mine += share(t + at, m, s + at, first + pixel);
      total = mine;
      for (int lanes = 1; lanes < kTeam; lanes *= 2) total += __shfl_xor_sync(kAll, total, lanes);
    }
    return total;
  }

  // A lower bound of the patch error (Cauchy-Schwarz): the squared difference of the patches' sums divided by their area.
  // Floats hold these sums exactly; kSafety allows for rounding of the bound.
  __device__ float bound(const float *a, const float *b) const {
    constexpr float kSafety = 1 - 1e-5f;
    float total = 0;
#pragma unroll
    for (int k = 0; k < Stride; k += kQuad) {
      const float4 p = *(const float4 *)(a + k), q = *(const float4 *)(b + k);
      const float x = p.x - q.x, y = p.y - q.y, z = p.z - q.z, w = p.w - q.w;
      total += (x * x + y * y + z * z + w * w) * (float)level.weights[k / kQuad];
    }
    return total * (kSafety / area);
  }

  // Tries the valid candidates, one per lane, except those that cannot be better. `sums` are those of the target's patch,
  // or null. Taking the first of the cheapest candidates that are tried together gives the same result as taking, one after
  // the other, each that is cheaper than the best so far.
  __device__ void consider(Choice &best, const uint8_t *t, const float *sums, uint32_t e, bool valid) const {
    valid = valid && e != best.entry;
    int64_t extra = 0;
    if (valid) {
      extra = cost_of_use(e);
      valid = extra < best.cost;
    }
    if (valid && sums) {
      const size_t at = place(item, row(e), column(e), level.source_height, level.source_width);
      valid = bound(sums, level.source_sums + at * Stride) <= (float)(best.cost - extra);
    }
    for (unsigned left = __ballot_sync(kAll, valid); left;) {
      int lane = -1;  // whose candidate this team tries; the last teams may have none
      for (int k = 0; k < kTeams; ++k, left &= left - 1)
        if (k == team) lane = __ffs(left) - 1;
      const uint32_t tried = __shfl_sync(kAll, e, max(lane, 0));
      const int64_t cost = __shfl_sync(kAll, extra, max(lane, 0)), limit = lane < 0 ? 0 : best.cost - cost;
      const int64_t found = error(t, at_source(tried), limit), gain = limit - found;
      if (!__any_sync(kAll, gain > 0)) continue;
      int64_t most = 0;
      int winner = 0;
      for (int other = 0; other < kWarp; other += kTeam) {
        const int64_t theirs = __shfl_sync(kAll, gain, other);
        if (theirs > most) most = theirs, winner = other;
      }
      best = {__shfl_sync(kAll, tried, winner), __shfl_sync(kAll, found, winner), best.cost - most};
    }
  }
};

template <int Stride, bool Modulated>
__global__ void __launch_bounds__(kBlock) errors_kernel(const __grid_constant__ Level level) {
  // Teams beyond the end repeat the last pixel, since all lanes of a warp must take part.
  const int x = min((int)((blockIdx.x * kBlock + threadIdx.x) / kTeam), level.target_width - 1), y = blockIdx.y;
  for (unsigned item = blockIdx.z; item < (unsigned)level.batch; item += gridDim.z) {
    const Search<Stride, Modulated> search(level, item);
    const size_t i = place(item, y, x, level.target_height, level.target_width);
    const int64_t error = search.error(search.at_target(y, x), search.at_source(level.field[i]), kNever);
    if (threadIdx.x % kTeam == 0) level.error[i] = error;
  }
}

EB_SHARED int tiles(int length, int shift) { return (length + shift + kTile - 1) / kTile; }

// One block per tile, one warp per row. Each row stays one pixel behind the previous row, so that a pixel sees the same
// neighbours as in a scan of the tile.
template <int Stride, bool Modulated>
__global__ void __launch_bounds__(kTile * kWarp, 4)
    sweep_kernel(const __grid_constant__ Level level, bool forward, int shift, int colour, uint32_t key) {
  // One of 2 x 2 tiles has the colour.
  static_assert(kColours == 4, "tile_colour() gives each of 2 x 2 tiles another colour");
  const int every = colour == kAllColours ? 1 : 2;
  const int across = (tiles(level.target_width, shift) + every - 1) / every;
  const int down = (tiles(level.target_height, shift) + every - 1) / every;
  const int item = blockIdx.x / across / down;
  int tile_y = blockIdx.x / across % down * every, tile_x = blockIdx.x % across * every;
  for (int k = 0; colour != kAllColours && k < kColours; ++k)
    if (tile_colour(tile_y + k / 2, tile_x + k % 2) == colour) {
      tile_y += k / 2, tile_x += k % 2;
      break;
    }
  const int top = max(tile_y * kTile - shift, 0), bottom = min((tile_y + 1) * kTile - shift, level.target_height);
  const int left = max(tile_x * kTile - shift, 0), right = min((tile_x + 1) * kTile - shift, level.target_width);
  if (top >= bottom || left >= right) return;

  // Rows and columns are counted from the start of the scan.
  const Search<Stride, Modulated> search(level, item);
  const int height = bottom - top, width = right - left, step = forward ? 1 : -1;
  const int lane = threadIdx.x % kWarp, r = threadIdx.x / kWarp;
  const int y = forward ? top + r : bottom - 1 - r, first_x = forward ? left : right - 1;
  const bool inside = r < height && lane < width;
  const size_t row_start = place(item, y, first_x, level.target_height, level.target_width), i = row_start + lane * step;
  const bool active = inside && (!level.active || level.active[i]);
  const unsigned row_active = __ballot_sync(kAll, active);
  __shared__ Choice tile[kTile][kTile];
  if (inside) {
    const uint32_t e = level.field[i];
    const int64_t error = level.error[i];
    tile[r][lane] = {e, error, error + search.cost_of_use(e)};
  }
  if (!__syncthreads_or(active)) return;

  int draws = 0;  // random candidates per pixel
  for (int radius = level.radius; radius; radius >>= level.shift) ++draws;
  for (int diagonal = 0; diagonal < height + width - 1; ++diagonal, __syncthreads()) {
    const int c = diagonal - r;
    if (c < 0 || !(row_active >> c & 1)) continue;
    Choice best = tile[r][c];
    const uint8_t *t = search.at_target(y, first_x + c * step);
    const size_t pixel = row_start + c * step;
    const float *sums = level.target_sums ? level.target_sums + pixel * Stride : nullptr;

#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
      uint32_t e = best.entry;
      bool valid;
      if (round == 0) {
        // Lane 0 tries the neighbour in the row, lane 1 the one in the column.
        valid = lane == 0 ? c > 0 : lane == 1 && r > 0;
        if (valid) {
          const uint32_t beside = lane == 0 ? tile[r][c - 1].entry : tile[r - 1][c].entry;
          const int sy = row(beside) + (lane == 0 ? 0 : step), sx = column(beside) + (lane == 0 ? step : 0);
          valid = sy >= 0 && sy < level.source_height && sx >= 0 && sx < level.source_width;
          e = entry(sy, sx);
        }
      } else {
        // Each lane draws one of the random candidates.
        uint32_t bits = mix(key, (uint32_t)(y * level.target_width + first_x + c * step));
        for (int k = 0; k < draws; ++k)
          if (k <= lane) bits = mix(bits);
        valid = lane < draws;
        const int radius = valid ? level.radius >> lane * level.shift : 0;
        e = random_near(best.entry, radius, level.source_height, level.source_width, bits);
      }
      search.consider(best, t, round ? sums : nullptr, e, valid);
    }
    if (lane == 0) tile[r][c] = best;
  }

  if (!(row_active >> lane & 1)) return;
  const uint32_t before = level.field[i];
  const Choice best = tile[r][lane];
  if (best.entry == before) return;
  if (level.used) {
    atomicSub(level.used + place(item, row(before), column(before), level.source_height, level.source_width), 1u);
    atomicAdd(level.used + place(item, row(best.entry), column(best.entry), level.source_height, level.source_width), 1u);
  }
  level.field[i] = best.entry;
  level.error[i] = best.error;
}

}  // namespace

}  // namespace ebsynth
