// The algorithm, from coarse to fine, in terms of a back end's operations on a whole batch:
//
//   Buffer<T> buffer<T>(count)        scratch memory, released at the end of its scope
//   each(batch, height, width, op)    op(item, y, x) for every pixel
//   errors(level)                     patch errors of the field
//   sweep(level, forward, shift, colour, key)   PatchMatch over the tiles of one colour, or of all
//   count(level, used)                how many field entries point to each source pixel
//   box(out, in, batch, height, width, patch, times, most)   sums over squares of `patch` pixels, applied once or twice. The
//       first time, outside is 0; the second time, the nearest pixel. Sums beyond 32 bits saturate; none exceeds `most`.
//   sums(...)                         sums of features over patches, for early rejection
//   vote(batch, height, width, op)    like each(), but faster
//   copy(to, from, bytes), progress(fraction)   progress throws to cancel
#pragma once

#include <algorithm>
#include <utility>

#include "problem.h"

namespace ebsynth {

constexpr int kSlack = 64;  // bytes that vector loads may read beyond features

// Features with `border` pixels around that repeat the nearest pixel or (zero) are `none`.
template <class Backend>
typename Backend::template Buffer<uint8_t> make_features(Backend &backend, const uint8_t *style, int style_channels, const uint8_t *guides, int guide_channels,
                                                         const Layout &layout, int batch, int height, int width, int border, bool zero, uint8_t none = 0) {
  const int h = height + 2 * border, w = width + 2 * border;
  auto out = backend.template buffer<uint8_t>((size_t)batch * h * w * layout.stride + kSlack);
  backend.each(batch, h, w, Features{out.data(), style, guides, style_channels, guide_channels, layout, height, width, border, none, zero});
  return out;
}

// The layout of style alone, for votes.
inline Layout plain_layout(int channels) {
  Layout plain{channels <= 4 ? 4 : 8, {}};
  for (int k = 0; k < kMaxStride; ++k) plain.channel[k] = (int8_t)(k < channels ? k : -1);
  return plain;
}

template <class Backend>
class Solver {
 public:
  Solver(Backend &backend, const Problem &problem) : backend_(backend), p_(problem) {}

  void solve() {
    build_pyramid();
    const int rounds = p_.levels * (int)p_.patches.size() + (p_.extra_pass ? 1 : 0);
    for (int l = p_.levels - 1; l >= 0; --l) {
      enter_level(l);
      for (size_t r = 0; r < p_.patches.size(); ++r) {
        backend_.progress((float)done_++ / rounds);
        round(p_.patches[r], true);
      }
    }
    if (p_.extra_pass) {
      all_active_ = true;
      round(3, false);
    }
    finish();
    backend_.progress(1.0f);
  }

 private:
  template <class T>
  using Buffer = typename Backend::template Buffer<T>;

  struct Searched {  // source or target of a level
    Buffer<uint8_t> features;
    Buffer<float> sums{};  // over patches of `summed` pixels a side; 0 = not computed
    int summed = 0;
  };

  struct Images {  // of one pyramid level
    int source_height, source_width, target_height, target_width;
    const uint8_t *source_style, *target_style, *source_guides, *target_guides, *modulation;
  };

  void build_pyramid() {
    images_.push_back({p_.source_height, p_.source_width, p_.target_height, p_.target_width, p_.source_style, p_.target_style,
                       p_.source_guides, p_.target_guides, p_.modulation});
    for (int l = 1; l < p_.levels; ++l) {
      const Images &fine = images_.back();
      Images half = fine;
      half.source_height = std::max(1, fine.source_height / 2), half.source_width = std::max(1, fine.source_width / 2);
      half.target_height = std::max(1, fine.target_height / 2), half.target_width = std::max(1, fine.target_width / 2);
      auto halve = [&](const uint8_t *image, bool source, int channels) -> const uint8_t * {
        if (!image || !channels) return nullptr;
        const int h = source ? fine.source_height : fine.target_height, w = source ? fine.source_width : fine.target_width;
        const int hh = source ? half.source_height : half.target_height, hw = source ? half.source_width : half.target_width;
        pyramid_.push_back(backend_.template buffer<uint8_t>((size_t)p_.batch * hh * hw * channels));
        backend_.each(p_.batch, hh, hw, Halve{pyramid_.back().data(), image, h, w, hh, hw, channels});
        return pyramid_.back().data();
      };
      half.source_style = halve(fine.source_style, true, p_.style_channels);
      half.target_style = halve(fine.target_style, false, p_.style_channels);
      half.source_guides = halve(fine.source_guides, true, p_.guide_channels);
      half.target_guides = halve(fine.target_guides, false, p_.guide_channels);
      half.modulation = halve(fine.modulation, false, p_.guide_channels);
      images_.push_back(half);
    }
  }

  // Prepares a level's features and its field, from the previous level if there is one.
  void enter_level(int l) {
    const Images &im = images_[l];
    const int h = im.target_height, w = im.target_width;
    border_ = p_.largest_patch / 2;
    source_ = {features(im.source_style, im.source_guides, im.source_height, im.source_width, p_.weights.layout, 0)};
    if (p_.painted) {
      source_style_ = features(im.source_style, nullptr, im.source_height, im.source_width, plain_layout(p_.style_channels), 0);
    }
    if (im.modulation) {
      // Style channels are not modulated.
      Layout guides = p_.weights.layout;
      for (int k = 0; k < guides.stride; ++k) guides.channel[k] = (int8_t)(guides.channel[k] < p_.style_channels ? -1 : guides.channel[k]);
      modulation_ = features(nullptr, im.modulation, h, w, guides, 255);
    }

    Buffer<uint32_t> field = backend_.template buffer<uint32_t>((size_t)p_.batch * h * w);
    const uint32_t key = this->key(l);
    if (l < p_.levels - 1) {
      const Images &coarse = images_[l + 1];
      backend_.each(p_.batch, h, w, DoubleField{field.data(), field_.data(), h, w, coarse.target_height, coarse.target_width, im.source_height, im.source_width});
    } else if (p_.start == EBSYNTH_START_GIVEN) {
      backend_.each(p_.batch, h, w, ImportField{field.data(), p_.nnf, h, w, p_.target_height, p_.target_width, im.source_height, im.source_width, l});
    } else if (p_.start == EBSYNTH_START_RANDOM) {
      backend_.each(p_.batch, h, w, RandomField{field.data(), h, w, im.source_height, im.source_width, key});
    } else {
      backend_.each(p_.batch, h, w, IdentityField{field.data(), h, w, im.source_height, im.source_width});
    }
    field_ = std::move(field);
    error_ = backend_.template buffer<int64_t>((size_t)p_.batch * h * w);
    level_ = l;
    sweep_ = 0;
    all_active_ = true;
    if (p_.painted) {
      style_ = backend_.template buffer<uint8_t>((size_t)p_.batch * h * w * p_.style_channels);
      vote(p_.patches.empty() ? p_.largest_patch : p_.patches[0], false, false);  // errors are unknown yet
    } else {
      target_ = {features(im.target_style, im.target_guides, h, w, p_.weights.layout, 0)};
    }
  }

  // Searches with patches of this size, then votes.
  void round(int patch, bool with_uniformity) {
    Level level = describe(patch);
    const bool uniform = with_uniformity && p_.uniformity > 0;
    backend_.errors(level);
    level.source_sums = sums(source_, patch, level.source_height, level.source_width);
    level.target_sums = sums(target_, patch, level.target_height, level.target_width);
    const size_t pixels = (size_t)p_.batch * level.source_height * level.source_width;
    Buffer<uint32_t> used, usage;
    if (uniform) {
      used = backend_.template buffer<uint32_t>(pixels), usage = backend_.template buffer<uint32_t>(pixels);
      backend_.count(level, used.data());
      level.used = used.data(), level.usage = usage.data();
      level.usage_cost = usage_cost(level);
    }
    const int64_t most = (int64_t)level.target_height * level.target_width * patch * patch;  // if all targets used the same patch
    for (int k = 0; k < p_.sweeps; ++k, ++sweep_) {
      const bool forward = sweep_ % 2 == 0;
      const int shift = sweep_ / 2 % 2 ? kTile / 2 : 0;
      const uint32_t key = mix(this->key(level_), (uint32_t)sweep_);
      if (!uniform) backend_.sweep(level, forward, shift, kAllColours, key);
      for (int colour = 0; uniform && colour < kColours; ++colour) {
        // For each source pixel, sums over its patch how many patches of the field cover each pixel.
        backend_.box(usage.data(), used.data(), p_.batch, level.source_height, level.source_width, patch, 2, most);
        backend_.sweep(level, forward, shift, colour, key);
      }
    }
    patch_ = patch;
    if (p_.painted) vote(patch, p_.weighted_vote, p_.threshold > 0);
  }

  Level describe(int patch) {
    const Images &im = images_[level_];
    Level level{};
    level.batch = p_.batch;
    level.source_height = im.source_height, level.source_width = im.source_width;
    level.target_height = im.target_height, level.target_width = im.target_width;
    level.border = border_;
    level.stride = p_.weights.layout.stride;
    level.patch = patch;
    level.source = source_.features.data(), level.target = target_.features.data();
    level.modulation = p_.modulation ? modulation_.data() : nullptr;
    std::copy(p_.weights.quads, p_.weights.quads + kMaxQuads, level.weights);
    level.field = field_.data(), level.error = error_.data();
    level.active = all_active_ ? nullptr : active_.data();
    const int whole = std::max(im.source_height, im.source_width);
    level.shift = level_ == 0 ? 2 : 1;
    level.radius = p_.radius ? std::min(p_.radius, whole) : whole;
    return level;
  }

  Buffer<uint8_t> features(const uint8_t *style, const uint8_t *guides, int height, int width, const Layout &layout, uint8_t none) {
    return make_features(backend_, style, p_.style_channels, guides, p_.guide_channels, layout, p_.batch, height, width, border_, p_.zero_border, none);
  }

  // Paints the target's style, updates its features and finds the pixels that still need a search.
  void vote(int patch, bool weighted, bool find_active) {
    const Images &im = images_[level_];
    const int h = im.target_height, w = im.target_width;
    const size_t pixels = (size_t)p_.batch * h * w;
    Buffer<uint32_t> weight;
    if (weighted) {
      weight = backend_.template buffer<uint32_t>(pixels);
      double unit = p_.weights.scale * patch * patch * (p_.style_channels + p_.guide_channels);
      int shift = 0;
      for (; unit > 1099511627776.0 && shift < 62; unit /= 2) ++shift;
      const int64_t whole = std::max<int64_t>(1, (int64_t)std::min(unit, 1099511627776.0));
      backend_.each(p_.batch, h, w, VoteWeight{weight.data(), error_.data(), h, w, whole, shift});
    }
    Buffer<uint8_t> style = backend_.template buffer<uint8_t>(pixels * p_.style_channels);
    const int stride = plain_layout(p_.style_channels).stride;
    backend_.vote(p_.batch, h, w, Vote{style.data(), field_.data(), weighted ? weight.data() : nullptr, source_style_.data(), h, w, im.source_height, im.source_width,
                                       border_, stride, p_.style_channels, patch});
    if (find_active) {
      Buffer<uint32_t> moved = backend_.template buffer<uint32_t>(pixels), sum = backend_.template buffer<uint32_t>(pixels);
      backend_.each(p_.batch, h, w, Moved{moved.data(), style_.data(), style.data(), h, w, p_.style_channels, p_.threshold});
      backend_.box(sum.data(), moved.data(), p_.batch, h, w, patch, 1, patch * patch);
      active_ = backend_.template buffer<uint8_t>(pixels);
      backend_.each(p_.batch, h, w, IsNotZero{active_.data(), sum.data(), h, w});
      all_active_ = false;
    }
    style_ = std::move(style);
    target_ = {features(style_.data(), im.target_guides, h, w, p_.weights.layout, 0)};
  }

  // The sums of features over patches, null where modulation makes them useless.
  const float *sums(Searched &searched, int patch, int h, int w) {
    if (p_.modulation) return nullptr;
    if (searched.summed != patch) {
      searched.sums = backend_.template buffer<float>((size_t)p_.batch * h * w * p_.weights.layout.stride);
      backend_.sums(searched.sums.data(), searched.features.data(), p_.batch, h, w, border_, p_.weights.layout.stride, patch);
      searched.summed = patch;
    }
    return searched.sums.data();
  }

  uint32_t usage_cost(const Level &level) const {
    const double area = (double)level.patch * level.patch;
    const double even = (double)level.target_height * level.target_width / ((double)level.source_height * level.source_width) * area;
    return (uint32_t)std::min(p_.uniformity * p_.weights.scale / (area * even) + 0.5, 1073741824.0);
  }

  uint32_t key(int level) const { return mix(mix((uint32_t)p_.seed, (uint32_t)(p_.seed >> 32)), (uint32_t)level); }

  void finish() {
    const int h = p_.target_height, w = p_.target_width;
    if (p_.image) backend_.copy(p_.image, style_.data(), (size_t)p_.batch * h * w * p_.style_channels);
    if (p_.nnf) backend_.each(p_.batch, h, w, ExportField{p_.nnf, field_.data(), h, w});
    if (p_.error) {
      backend_.errors(describe(patch_ ? patch_ : p_.largest_patch));
      backend_.each(p_.batch, h, w, ExportError{p_.error, error_.data(), h, w, 1.0 / p_.weights.scale});
    }
  }

  Backend &backend_;
  const Problem &p_;
  std::vector<Images> images_;
  std::vector<Buffer<uint8_t>> pyramid_;

  int level_ = 0, border_ = 0, sweep_ = 0, patch_ = 0, done_ = 0;
  Searched source_, target_;
  Buffer<uint8_t> source_style_, modulation_, style_, active_;
  Buffer<uint32_t> field_;
  Buffer<int64_t> error_;
  bool all_active_ = true;
};

template <class Backend>
void remap_fields(Backend &backend, const ebsynth_remapping &c) {
  const int h = c.target_height, w = c.target_width, border = c.patch_size / 2;
  auto field = backend.template buffer<uint32_t>((size_t)c.batch * h * w);
  backend.each(c.batch, h, w, ImportField{field.data(), c.nnf, h, w, h, w, c.source_height, c.source_width, 0});
  const Layout plain = plain_layout(c.channels);
  auto source = make_features(backend, c.source, c.channels, nullptr, 0, plain, c.batch, c.source_height, c.source_width, border, c.border == EBSYNTH_BORDER_ZERO);
  backend.vote(c.batch, h, w, Vote{c.image, field.data(), nullptr, source.data(), h, w, c.source_height, c.source_width, border, plain.stride, c.channels, c.patch_size});
}

// Computes the errors of the field problem.nnf in problem.error.
template <class Backend>
void patch_errors_of(Backend &backend, const Problem &p, int patch) {
  const int h = p.target_height, w = p.target_width, border = patch / 2;
  const size_t pixels = (size_t)p.batch * h * w;
  auto field = backend.template buffer<uint32_t>(pixels);
  auto error = backend.template buffer<int64_t>(pixels);
  backend.each(p.batch, h, w, ImportField{field.data(), p.nnf, h, w, h, w, p.source_height, p.source_width, 0});
  auto source = make_features(backend, p.source_style, p.style_channels, p.source_guides, p.guide_channels, p.weights.layout, p.batch, p.source_height, p.source_width, border, p.zero_border);
  auto target = make_features(backend, p.target_style, p.style_channels, p.target_guides, p.guide_channels, p.weights.layout, p.batch, h, w, border, p.zero_border);
  Level level{};
  level.batch = p.batch, level.border = border, level.stride = p.weights.layout.stride, level.patch = patch;
  level.source_height = p.source_height, level.source_width = p.source_width, level.target_height = h, level.target_width = w;
  level.source = source.data(), level.target = target.data();
  std::copy(p.weights.quads, p.weights.quads + kMaxQuads, level.weights);
  level.field = field.data(), level.error = error.data();
  backend.errors(level);
  backend.each(p.batch, h, w, ExportError{p.error, error.data(), h, w, 1.0 / p.weights.scale});
}

}  // namespace ebsynth
