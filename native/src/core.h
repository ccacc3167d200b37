// Shared by all back ends: fixed-point weights, packed fields, random numbers, candidates.
// Integer arithmetic makes the CPU and CUDA agree bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define EB_SHARED static __host__ __device__ __forceinline__
#else
#define EB_SHARED static inline
#endif

#if defined(__CUDACC__)
#define EB_SHARED_MEMBER __host__ __device__ __forceinline__
#else
#define EB_SHARED_MEMBER inline
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define EB_FORCE_INLINE __forceinline
#define EB_PREFETCH(address) ((void)0)
#else
#define EB_FORCE_INLINE inline __attribute__((always_inline))
#define EB_PREFETCH(address) __builtin_prefetch(address)
#endif

namespace ebsynth {

using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

// Channels of equal weight are stored in quads of four bytes, so that one multiplication per quad weights a whole patch.
constexpr int kQuad = 4;
constexpr int kMaxQuads = 32;
constexpr int kMaxStride = kQuad * kMaxQuads;

// Sweeps propagate within tiles of this many pixels a side. Tiles are independent of each other.
constexpr int kTile = 8;

// A sweep visits every fourth tile, then updates the usage, and so on. If all pixels chose at once, they would all move to
// the same rarely used places. (Measured on stylit: completeness 74 with one colour, 50 with two, 44 with four.)
constexpr int kColours = 4;
constexpr int kAllColours = -1;  // where there is no usage to update
EB_SHARED int tile_colour(int tile_y, int tile_x) { return (tile_y & 1) * 2 + ((tile_x + tile_y) & 1); }

// A field entry: row in the upper half, column in the lower.
EB_SHARED uint32_t entry(int y, int x) { return (uint32_t)y << 16 | (uint32_t)x; }
EB_SHARED int row(uint32_t e) { return (int)(e >> 16); }
EB_SHARED int column(uint32_t e) { return (int)(e & 0xffff); }

EB_SHARED int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// Counter-based random numbers: hashes (a finalizer of the murmur family), so there is no shared state.
EB_SHARED uint32_t mix(uint32_t h) {
  h ^= h >> 16;
  h *= 0x7feb352du;
  h ^= h >> 15;
  h *= 0x846ca68bu;
  h ^= h >> 16;
  return h;
}
EB_SHARED uint32_t mix(uint32_t a, uint32_t b) { return mix(a + 0x9e3779b9u * (b + 1)); }

// Maps 16 random bits to low..high.
EB_SHARED int pick(uint32_t bits16, int low, int high) { return low + (int)((bits16 * (uint32_t)(high - low + 1)) >> 16); }

// Draws a source pixel at most `radius` away from `e`.
EB_SHARED uint32_t random_near(uint32_t e, int radius, int height, int width, uint32_t bits) {
  const int y = row(e), x = column(e);
  const int top = y - radius > 0 ? y - radius : 0, left = x - radius > 0 ? x - radius : 0;
  const int bottom = y + radius < height ? y + radius : height - 1, right = x + radius < width ? x + radius : width - 1;
  return entry(pick(bits >> 16, top, bottom), pick(bits & 0xffff, left, right));
}

// One search at one pyramid level. Pointers are to item 0 of the batch, strides between items are in elements.
struct Level {
  int batch;
  int source_height, source_width, target_height, target_width;
  int border;   // pixels of repeated border around features
  int stride;   // bytes per pixel of features: 4 * quads, a power of two
  int patch;    // pixels a side
  const uint8_t *source, *target;  // features [batch, height + 2 border, width + 2 border, stride]
  const uint8_t *modulation;       // like target, or null
  const float *source_sums, *target_sums;  // sums over the patch [batch, height, width, stride] of features, or null
  uint32_t weights[kMaxQuads];
  uint32_t *field;    // [batch, target_height, target_width]
  int64_t *error;     // same shape: patch errors of field
  const uint8_t *active;  // same shape: 0 = skip; or null
  uint32_t *used;         // [batch, source_height, source_width]: how many entries point to a pixel; updated by sweeps; or null
  const uint32_t *usage;  // same shape: how many patches of the field overlap the pixel's patch, as last computed; or null
  uint32_t usage_cost;    // cost of one unit of usage
  int radius;             // of the first random candidate
  int shift;              // halves the radius this many times after each random candidate
};

}  // namespace ebsynth
