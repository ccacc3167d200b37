// Per-pixel operations, one function object each. A back end's each(batch, height, width, op) calls op(item, y, x) for all
// pixels, in any order and in parallel.
#pragma once

#include "core.h"

namespace ebsynth {

// Position of a pixel in an array [batch, height, width].
EB_SHARED size_t place(int item, int y, int x, int height, int width) { return ((size_t)item * height + y) * width + x; }

// Averages blocks of 2 x 2 pixels, rounded. An odd last row or column is dropped.
struct Halve {
  uint8_t *half;
  const uint8_t *image;
  int height, width, half_height, half_width, channels;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const int y0 = 2 * y, x0 = 2 * x, y1 = clamp(y0 + 1, 0, height - 1), x1 = clamp(x0 + 1, 0, width - 1);
    const uint8_t *a = image + place(item, y0, x0, height, width) * channels;
    const uint8_t *b = image + place(item, y0, x1, height, width) * channels;
    const uint8_t *c = image + place(item, y1, x0, height, width) * channels;
    const uint8_t *d = image + place(item, y1, x1, height, width) * channels;
    uint8_t *out = half + place(item, y, x, half_height, half_width) * channels;
    for (int k = 0; k < channels; ++k) out[k] = (uint8_t)((a[k] + b[k] + c[k] + d[k] + 2) / 4);
  }
};

// The channel stored at each byte of a feature: style channels first, then guides; -1 for none.
struct Layout {
  int stride;
  int8_t channel[kMaxStride];
};

// Builds what patches are compared on: style and guides, with a border that repeats the nearest pixel or (zero) is `none`.
struct Features {
  uint8_t *features;
  const uint8_t *style, *guides;
  int style_channels, guide_channels;
  Layout layout;
  int height, width, border;
  uint8_t none;  // value of bytes without a channel, and of a missing style
  bool zero;

  // y and x count from the border's first pixel.
  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const int inner_y = clamp(y - border, 0, height - 1), inner_x = clamp(x - border, 0, width - 1);
    const bool outside = zero && (inner_y != y - border || inner_x != x - border);
    const size_t from = place(item, inner_y, inner_x, height, width);
    uint8_t *out = features + place(item, y, x, height + 2 * border, width + 2 * border) * layout.stride;
    for (int k = 0; k < layout.stride; ++k) {
      const int c = layout.channel[k];
      out[k] = c < 0 || outside ? none : c >= style_channels ? guides[from * guide_channels + (c - style_channels)] : style ? style[from * style_channels + c] : none;
    }
  }
};

struct RandomField {
  uint32_t *field;
  int height, width, source_height, source_width;
  uint32_t key;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    const uint32_t bits = mix(key, (uint32_t)(y * width + x));
    field[i] = entry(pick(bits >> 16, 0, source_height - 1), pick(bits & 0xffff, 0, source_width - 1));
  }
};

struct IdentityField {
  uint32_t *field;
  int height, width, source_height, source_width;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    field[place(item, y, x, height, width)] =
        entry((int)((int64_t)y * source_height / height), (int)((int64_t)x * source_width / width));
  }
};

// Enlarges a field to the next finer level.
struct DoubleField {
  uint32_t *field;
  const uint32_t *coarse;
  int height, width, coarse_height, coarse_width, source_height, source_width;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const uint32_t e = coarse[place(item, clamp(y / 2, 0, coarse_height - 1), clamp(x / 2, 0, coarse_width - 1), coarse_height, coarse_width)];
    field[place(item, y, x, height, width)] =
        entry(clamp(2 * row(e) + (y & 1), 0, source_height - 1), clamp(2 * column(e) + (x & 1), 0, source_width - 1));
  }
};

// Shrinks the caller's field by 2^shift.
struct ImportField {
  uint32_t *field;
  const int32_t *nnf;
  int height, width, full_height, full_width, source_height, source_width, shift;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const int fy = clamp(y << shift, 0, full_height - 1), fx = clamp(x << shift, 0, full_width - 1);
    const int32_t *from = nnf + 2 * place(item, fy, fx, full_height, full_width);
    field[place(item, y, x, height, width)] =
        entry(clamp(from[0] >> shift, 0, source_height - 1), clamp(from[1] >> shift, 0, source_width - 1));
  }
};

struct ExportField {
  int32_t *nnf;
  const uint32_t *field;
  int height, width;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    nnf[2 * i] = row(field[i]);
    nnf[2 * i + 1] = column(field[i]);
  }
};

struct ExportError {
  float *out;
  const int64_t *error;
  int height, width;
  double unit;  // of integer errors

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    out[i] = (float)((double)error[i] * unit);
  }
};

// Sums over a window of `patch` along one axis. Outside is 0 or, with `repeat`, the nearest value.
struct BoxSum {
  uint32_t *out;
  const uint32_t *in;
  int height, width, patch;
  bool along_rows, repeat;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const int length = along_rows ? width : height, at = along_rows ? x : y, radius = patch / 2;
    const size_t start = along_rows ? place(item, y, 0, height, width) : place(item, 0, x, height, width);
    const size_t step = along_rows ? 1 : width;
    uint64_t sum = 0;
    for (int k = at - radius; k <= at + radius; ++k)
      if (repeat || (k >= 0 && k < length)) sum += in[start + clamp(k, 0, length - 1) * step];
    out[start + at * step] = sum < 0xffffffffu ? (uint32_t)sum : 0xffffffffu;  // saturates
  }
};

// Marks pixels of an image where any channel moved by at least `threshold`.
struct Moved {
  uint32_t *moved;
  const uint8_t *before, *after;
  int height, width, channels, threshold;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    uint32_t any = 0;
    for (int c = 0; c < channels; ++c) {
      const int d = (int)before[i * channels + c] - (int)after[i * channels + c];
      any |= (uint32_t)(d >= threshold || -d >= threshold);
    }
    moved[i] = any;
  }
};

struct IsNotZero {
  uint8_t *out;
  const uint32_t *in;
  int height, width;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    out[i] = in[i] != 0;
  }
};

// The weight of each pixel's patch in a weighted vote: 2^20 / (1 + error per value), at least 1.
struct VoteWeight {
  uint32_t *weight;
  const int64_t *error;
  int height, width;
  int64_t unit;  // the error that means 1 per value, at most 2^40 ...
  int shift;     // ... after shifting it and the errors right by this many bits

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const size_t i = place(item, y, x, height, width);
    const uint64_t share = ((uint64_t)unit << 20) / (uint64_t)(unit + (error[i] >> shift));
    weight[i] = share < 1 ? 1 : (uint32_t)share;
  }
};

// Averages the patches that cover each target pixel, by weight if given, rounded to the nearest, ties up.
struct Vote {
  uint8_t *image;  // [batch, height, width, channels]
  const uint32_t *field;
  const uint32_t *weight;  // or null
  const uint8_t *source;   // features of the source's style alone, with its border
  int height, width, source_height, source_width, border, stride, channels, patch;

  EB_SHARED_MEMBER void operator()(int item, int y, int x) const {
    const int radius = patch / 2, pitch = source_width + 2 * border;
    const uint8_t *from = source + ((size_t)item * (source_height + 2 * border) * pitch + (size_t)border * pitch + border) * stride;
    uint64_t sum[8] = {}, count = 0;
    for (int ty = clamp(y - radius, 0, y); ty <= y + radius && ty < height; ++ty)
      for (int tx = clamp(x - radius, 0, x); tx <= x + radius && tx < width; ++tx) {
        const size_t i = place(item, ty, tx, height, width);
        const uint8_t *s = from + ((ptrdiff_t)(row(field[i]) + y - ty) * pitch + column(field[i]) + x - tx) * stride;
        const uint32_t w = weight ? weight[i] : 1;
        count += w;
        for (int c = 0; c < channels; ++c) sum[c] += (uint64_t)w * s[c];
      }
    uint8_t *out = image + place(item, y, x, height, width) * channels;
    for (int c = 0; c < channels; ++c) out[c] = (uint8_t)((2 * sum[c] + count) / (2 * count));
  }
};

}  // namespace ebsynth
