// Included by one source file per instruction set, each compiled with its own flags. Everything here has internal linkage,
// so that the linker cannot mix code for different processors.

#include "kernels.h"
#include "../include/ebsynth.h"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ebsynth {
namespace {

#if defined(__AVX2__)

// Sums squared differences, 16 bytes at a time, in 32-bit lanes that keep quads separate.
template <int Stride>
struct Sum {
  static constexpr int kParts = Stride <= 16 ? 1 : Stride / 16;
  __m256i part[kParts];

  Sum() { for (auto &p : part) p = _mm256_setzero_si256(); }

  static __m256i squares(__m128i a, __m128i b) {
    const __m256i d = _mm256_sub_epi16(_mm256_cvtepu8_epi16(a), _mm256_cvtepu8_epi16(b));
    return _mm256_madd_epi16(d, d);
  }
  static __m128i load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }

  EB_FORCE_INLINE void add_row(const uint8_t *a, const uint8_t *b, int pixels) {
    if constexpr (Stride >= 16) {
      for (int i = 0; i < pixels; ++i, a += Stride, b += Stride)
        for (int k = 0; k < kParts; ++k) part[k] = _mm256_add_epi32(part[k], squares(load(a + 16 * k), load(b + 16 * k)));
    } else {
      constexpr int kPixels = 16 / Stride;
      int i = 0;
      for (; i + kPixels <= pixels; i += kPixels, a += 16, b += 16) part[0] = _mm256_add_epi32(part[0], squares(load(a), load(b)));
      if constexpr (Stride == 8) {
        if (i < pixels) part[0] = _mm256_add_epi32(part[0], squares(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)b)));
      } else {
        for (; i < pixels; ++i, a += 4, b += 4)
          part[0] = _mm256_add_epi32(part[0], squares(_mm_cvtsi32_si128(*(const int *)a), _mm_cvtsi32_si128(*(const int *)b)));
      }
    }
  }

  inline int64_t weighed(const uint32_t *weights) const {
    __m256i total = _mm256_setzero_si256();
    for (int k = 0; k < kParts; ++k) {
      const __m256i quads = _mm256_add_epi32(part[k], _mm256_srli_epi64(part[k], 32));
      __m256i w;
      if constexpr (Stride == 4) w = _mm256_set1_epi64x(weights[0]);
      else if constexpr (Stride == 8) w = _mm256_setr_epi64x(weights[0], weights[1], weights[0], weights[1]);
      else w = _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)(weights + 4 * k)));
      total = _mm256_add_epi64(total, _mm256_mul_epu32(quads, w));
    }
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
  }
};

#else

template <int Stride>
struct Sum {
  uint32_t quad[Stride / kQuad] = {};

  inline void add_row(const uint8_t *a, const uint8_t *b, int pixels) {
    for (int i = 0; i < pixels * Stride; i += Stride)
      for (int q = 0; q < Stride / kQuad; ++q)
        for (int c = 0; c < kQuad; ++c) {
          const int d = (int)a[i + kQuad * q + c] - (int)b[i + kQuad * q + c];
          quad[q] += (uint32_t)(d * d);
        }
  }

  inline int64_t weighed(const uint32_t *weights) const {
    int64_t total = 0;
    for (int q = 0; q < Stride / kQuad; ++q) total += (int64_t)quad[q] * weights[q];
    return total;
  }
};

#endif

// One search of one item.
template <int Stride, int Patch>
struct Search {
  const Level &level;
  const int patch, radius;
  const size_t source_pitch, target_pitch;
  const uint8_t *source, *target;
  const uint8_t *modulation;  // parallel to target, or null
  float bound_weights[Stride];

  Search(const Level &l, int item)
      : level(l), patch(Patch ? Patch : l.patch), radius((Patch ? Patch : l.patch) / 2),
        source_pitch((size_t)(l.source_width + 2 * l.border) * Stride), target_pitch((size_t)(l.target_width + 2 * l.border) * Stride) {
    // Features begin at the first pixel of the patch of pixel (0, 0).
    const int inset = l.border - radius;
    constexpr float kSafety = 1 - 1e-5f;
    for (int k = 0; k < Stride; ++k) bound_weights[k] = kSafety * (float)l.weights[k / kQuad] / (float)(patch * patch);
    source = l.source + item * source_pitch * (l.source_height + 2 * l.border) + inset * source_pitch + inset * Stride;
    target = l.target + item * target_pitch * (l.target_height + 2 * l.border) + inset * target_pitch + inset * Stride;
    modulation = l.modulation ? l.modulation + (target - l.target) : nullptr;
  }

  // A lower bound of the patch error (Cauchy-Schwarz): the squared difference of the patches' sums divided by their area.
  // Floats hold these sums exactly; kSafety allows for rounding of the bound.
  inline float bound(const float *a, const float *b) const {
#if defined(__AVX2__)
    if constexpr (Stride >= 8) {
      __m256 total = _mm256_setzero_ps();
      for (int k = 0; k < Stride; k += 8) {
        const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(a + k), _mm256_loadu_ps(b + k));
        total = _mm256_add_ps(total, _mm256_mul_ps(_mm256_mul_ps(d, d), _mm256_loadu_ps(bound_weights + k)));
      }
      __m128 half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
      half = _mm_add_ps(half, _mm_movehl_ps(half, half));
      return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
#endif
    float total = 0;
    for (int k = 0; k < Stride; ++k) total += (a[k] - b[k]) * (a[k] - b[k]) * bound_weights[k];
    return total;
  }

  const uint8_t *at_target(int y, int x) const { return target + y * target_pitch + (size_t)x * Stride; }
  const uint8_t *at_source(uint32_t e) const { return source + row(e) * source_pitch + (size_t)column(e) * Stride; }

  int64_t modulated_error(const uint8_t *t, const uint8_t *s) const {
    uint64_t quad[Stride / kQuad] = {};
    const uint8_t *m = modulation + (t - target);
    for (int y = 0; y < patch; ++y, t += target_pitch, m += target_pitch, s += source_pitch)
      for (int b = 0; b < patch * Stride; ++b) {
        const int d = (int)t[b] - (int)s[b];
        quad[b % Stride / kQuad] += (uint32_t)(d * d) * m[b];
      }
    int64_t total = 0;
    for (int q = 0; q < Stride / kQuad; ++q) total += (int64_t)(quad[q] * level.weights[q]);
    return total;
  }

  // The exact error if it is below `limit`, else any value that is not.
  inline int64_t error(const uint8_t *t, const uint8_t *s, int64_t limit) const {
    if (modulation) return modulated_error(t, s);
    Sum<Stride> sum;
    constexpr int kCheck = Patch == 5 ? 2 : 3;
    int y = 0;
    for (; y + kCheck < patch; ) {
      for (int k = 0; k < kCheck; ++k, ++y, t += target_pitch, s += source_pitch) sum.add_row(t, s, patch);
      const int64_t partial = sum.weighed(level.weights);
      if (partial >= limit) return partial;
    }
    for (; y < patch; ++y, t += target_pitch, s += source_pitch) sum.add_row(t, s, patch);
    return sum.weighed(level.weights);
  }
};

constexpr int kShortRun = 3, kLongRun = 64;  // pixels of a run: up to the first, one by one; at most the second at once

// Errors of `length` pixels whose matches are adjacent, too: neighbouring patches share all columns but the outer ones.
template <int Stride, int Patch>
void run_errors(int64_t *out, const Search<Stride, Patch> &search, const uint8_t *t, const uint8_t *s, int length) {
  uint32_t column[(kLongRun + EBSYNTH_MAX_PATCH_SIZE) * Stride], sum[Stride] = {};
  const int patch = search.patch, bytes = (length + patch - 1) * Stride;
  std::memset(column, 0, bytes * sizeof(uint32_t));
  for (int k = 0; k < patch; ++k, t += search.target_pitch, s += search.source_pitch)
    for (int b = 0; b < bytes; ++b) {
      const int d = (int)t[b] - (int)s[b];
      column[b] += (uint32_t)(d * d);
    }
  for (int b = 0; b < (patch - 1) * Stride; ++b) sum[b % Stride] += column[b];
  const uint32_t *leaves = column, *enters = column + (patch - 1) * Stride;
  for (int x = 0; x < length; ++x, leaves += Stride, enters += Stride) {
    int64_t total = 0;
    for (int c = 0; c < Stride; ++c) sum[c] += enters[c];
    for (int q = 0; q < Stride / kQuad; ++q) {
      const uint32_t *quad = sum + kQuad * q;
      total += (int64_t)(quad[0] + quad[1] + quad[2] + quad[3]) * search.level.weights[q];
    }
    for (int c = 0; c < Stride; ++c) sum[c] -= leaves[c];
    out[x] = total;
  }
}

template <int Stride, int Patch>
void errors(const Level &level, int item, int y0, int y1) {
  const Search<Stride, Patch> search(level, item);
  const int width = level.target_width;
  for (int y = y0; y < y1; ++y) {
    const size_t row_start = ((size_t)item * level.target_height + y) * width;
    const uint32_t *field = level.field + row_start;
    for (int x = 0, length; x < width; x += length) {
      for (length = 1; length < kLongRun && x + length < width && field[x + length] == field[x] + (uint32_t)length;) ++length;
      if (length > kShortRun && !search.modulation) {
        run_errors(level.error + row_start + x, search, search.at_target(y, x), search.at_source(field[x]), length);
        continue;
      }
      for (int k = 0; k < length; ++k)
        level.error[row_start + x + k] = search.error(search.at_target(y, x + k), search.at_source(field[x + k]), INT64_MAX);
    }
  }
}

template <int Stride, int Patch>
void sweep(const Level &level, int item, int y0, int x0, int y1, int x1, bool forward, uint32_t key) {
  const Search<Stride, Patch> search(level, item);
  const int width = level.target_width, step = forward ? 1 : -1;
  const int hs = level.source_height, ws = level.source_width;
  const size_t base = (size_t)item * level.target_height * width;
  const uint32_t *usage = level.usage ? level.usage + (size_t)item * hs * ws : nullptr;
  const float *source_sums = level.source_sums ? level.source_sums + (size_t)item * hs * ws * Stride : nullptr;
  const float *target_sums = level.target_sums ? level.target_sums + base * Stride : nullptr;
  uint32_t *field = level.field + base;
  int64_t *error = level.error + base;
  const uint8_t *active = level.active ? level.active + base : nullptr;
  const int first_y = forward ? y0 : y1 - 1, first_x = forward ? x0 : x1 - 1;

  for (int y = first_y; y >= y0 && y < y1; y += step)
    for (int x = first_x; x >= x0 && x < x1; x += step) {
      const size_t i = (size_t)y * width + x;
      if (active && !active[i]) continue;
      uint32_t best = field[i];
      int64_t best_error = error[i];
      int64_t best_cost = best_error + (usage ? (int64_t)level.usage_cost * usage[row(best) * ws + column(best)] : 0);
      const uint8_t *t = search.at_target(y, x);
      const float *t_sums = target_sums + i * Stride;

      auto consider = [&](uint32_t e) {
        if (e == best) return;
        const int64_t extra = usage ? (int64_t)level.usage_cost * usage[(size_t)row(e) * ws + column(e)] : 0;
        const int64_t limit = best_cost - extra;
        if (limit <= 0) return;
        const int64_t found = search.error(t, search.at_source(e), limit);
        if (found >= limit) return;
        best = e;
        best_error = found;
        best_cost = found + extra;
      };

      if (x != first_x) {
        const uint32_t e = field[i - step];
        const int cx = column(e) + step;
        if (cx >= 0 && cx < ws) consider(entry(row(e), cx));
      }
      if (y != first_y) {
        const uint32_t e = field[i - (ptrdiff_t)step * width];
        const int cy = row(e) + step;
        if (cy >= 0 && cy < hs) consider(entry(cy, column(e)));
      }
      // All random candidates are drawn around the same centre, so that they can be prefetched.
      uint32_t bits = mix(key, (uint32_t)i), candidates[16];
      int count = 0;
      for (int r = level.radius; r >= 1; r >>= level.shift) {
        bits = mix(bits);
        const uint32_t e = candidates[count++] = random_near(best, r, hs, ws, bits);
        if (source_sums) EB_PREFETCH(source_sums + ((size_t)row(e) * ws + column(e)) * Stride);
      }
      for (int k = 0; k < count; ++k) {
        const uint32_t e = candidates[k];
        if (source_sums && search.bound(t_sums, source_sums + ((size_t)row(e) * ws + column(e)) * Stride) > (float)best_cost) continue;
        consider(e);
      }
      if (best == field[i]) continue;
      if (level.used) {
        uint32_t *used = level.used + (size_t)item * hs * ws, from = field[i];
        __atomic_fetch_sub(&used[(size_t)row(from) * ws + column(from)], 1u, __ATOMIC_RELAXED);
        __atomic_fetch_add(&used[(size_t)row(best) * ws + column(best)], 1u, __ATOMIC_RELAXED);
      }
      field[i] = best;
      error[i] = best_error;
    }
}

template <int Stride>
void errors_of(const Level &level, int item, int y0, int y1) {
  if (level.patch == 5) errors<Stride, 5>(level, item, y0, y1);
  else errors<Stride, 0>(level, item, y0, y1);
}
template <int Stride>
void sweep_of(const Level &level, int item, int y0, int x0, int y1, int x1, bool forward, uint32_t key) {
  if (level.patch == 5) sweep<Stride, 5>(level, item, y0, x0, y1, x1, forward, key);
  else sweep<Stride, 0>(level, item, y0, x0, y1, x1, forward, key);
}

template <int Stride>
void sum_row_of(float *out, const uint32_t *columns, int width, int patch) {
  uint32_t sum[Stride] = {};
  for (int k = 0; k < patch - 1; ++k)
    for (int c = 0; c < Stride; ++c) sum[c] += columns[k * Stride + c];
  for (int x = 0; x < width; ++x, columns += Stride, out += Stride)
    for (int c = 0; c < Stride; ++c) {
      sum[c] += columns[(patch - 1) * Stride + c];
      out[c] = (float)(int32_t)sum[c];
      sum[c] -= columns[c];
    }
}

void box_row(uint32_t *out, const uint32_t *in, int width, int patch, bool repeat) {
  const int radius = patch / 2;
  const uint32_t first = repeat ? in[0] : 0, last = repeat ? in[width - 1] : 0;
  uint32_t sum = (uint32_t)radius * first;
  for (int k = 0; k < radius; ++k) sum += k < width ? in[k] : last;
  for (int x = 0; x < width; ++x) {
    sum += x + radius < width ? in[x + radius] : last;
    out[x] = sum;
    sum -= x - radius >= 0 ? in[x - radius] : first;
  }
}

// Processes all rows of `columns` columns; rows are `width` apart.
void box_columns(uint32_t *out, const uint32_t *in, int height, int width, int columns, int patch, bool repeat) {
  const int radius = patch / 2;
  auto row_of = [&](int y) { return y >= 0 && y < height ? in + (size_t)y * width : !repeat ? nullptr : in + (size_t)(y < 0 ? 0 : height - 1) * width; };
  std::memset(out, 0, columns * sizeof(uint32_t));
  for (int k = -radius; k <= radius; ++k)
    if (const uint32_t *from = row_of(k))
      for (int x = 0; x < columns; ++x) out[x] += from[x];
  for (int y = 1; y < height; ++y) {
    const uint32_t *above = out + (size_t)(y - 1) * width, *enters = row_of(y + radius), *leaves = row_of(y - radius - 1);
    uint32_t *to = out + (size_t)y * width;
    if (enters && leaves)
      for (int x = 0; x < columns; ++x) to[x] = above[x] + enters[x] - leaves[x];
    else if (enters)
      for (int x = 0; x < columns; ++x) to[x] = above[x] + enters[x];
    else if (leaves)
      for (int x = 0; x < columns; ++x) to[x] = above[x] - leaves[x];
    else
      std::memcpy(to, above, columns * sizeof(uint32_t));
  }
}

inline void add_scaled(uint32_t *sum, const uint8_t *values, int count, uint32_t factor) {
  for (int k = 0; k < count; ++k) sum[k] += factor * values[k];
}

// For a run of `length` pixels with adjacent matches, pixel k of the (length + patch - 1) pixels that their patches cover in
// this row gets min(k + 1, length, patch, ...) votes for the same source pixel: a ramp up, a plateau, a ramp down.
void vote_row(const Vote &op, int item, int y, uint32_t *sum) {
  const int radius = op.patch / 2, pitch = op.source_width + 2 * op.border, stride = op.stride;
  const uint8_t *from = op.source + ((size_t)item * (op.source_height + 2 * op.border) * pitch + (size_t)op.border * pitch + op.border) * stride;
  std::memset(sum, 0, (size_t)(op.width + 2 * radius) * stride * sizeof(uint32_t));
  const int first = y - radius > 0 ? y - radius : 0, last = y + radius < op.height ? y + radius : op.height - 1;
  for (int ty = first; ty <= last; ++ty) {
    const uint32_t *field = op.field + place(item, ty, 0, op.height, op.width);
    for (int x = 0; x < op.width;) {
      int length = 1;
      while (x + length < op.width && field[x + length] == field[x] + (uint32_t)length) ++length;
      const uint8_t *s = from + ((ptrdiff_t)(row(field[x]) + y - ty) * pitch + column(field[x]) - radius) * stride;
      uint32_t *to = sum + (size_t)x * stride;
      const int most = length < op.patch ? length : op.patch, end = length + op.patch - 1;
      for (int k = 0; k < most - 1; ++k) {
        add_scaled(to + (size_t)k * stride, s + (ptrdiff_t)k * stride, stride, (uint32_t)k + 1);
        add_scaled(to + (size_t)(end - 1 - k) * stride, s + (ptrdiff_t)(end - 1 - k) * stride, stride, (uint32_t)k + 1);
      }
      add_scaled(to + (size_t)(most - 1) * stride, s + (ptrdiff_t)(most - 1) * stride, (end - 2 * (most - 1)) * stride, (uint32_t)most);
      x += length;
    }
  }
  for (int x = 0; x < op.width; ++x) {
    const int left = x - radius > 0 ? x - radius : 0, right = x + radius < op.width ? x + radius : op.width - 1;
    const uint32_t count = (uint32_t)((last - first + 1) * (right - left + 1));
    uint8_t *out = op.image + place(item, y, x, op.height, op.width) * op.channels;
    for (int c = 0; c < op.channels; ++c) out[c] = (uint8_t)((2 * sum[(size_t)(x + radius) * stride + c] + count) / (2 * count));
  }
}

#define EB_BY_STRIDE(stride, function, ...)               \
  switch (stride) {                               \
    case 4: return function<4>(__VA_ARGS__);      \
    case 8: return function<8>(__VA_ARGS__);      \
    case 16: return function<16>(__VA_ARGS__);    \
    case 32: return function<32>(__VA_ARGS__);    \
    case 64: return function<64>(__VA_ARGS__);    \
    default: return function<128>(__VA_ARGS__);   \
  }

void any_errors(const Level &level, int item, int y0, int y1) { EB_BY_STRIDE(level.stride, errors_of, level, item, y0, y1) }
void any_sweep(const Level &level, int item, int y0, int x0, int y1, int x1, bool forward, uint32_t key) {
  EB_BY_STRIDE(level.stride, sweep_of, level, item, y0, x0, y1, x1, forward, key)
}

void any_sum_row(float *out, const uint32_t *columns, int width, int stride, int patch) {
  EB_BY_STRIDE(stride, sum_row_of, out, columns, width, patch)
}

}  // namespace
}  // namespace ebsynth
