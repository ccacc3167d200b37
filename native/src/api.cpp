// The C interface: checks arguments, turns calls into problems and exceptions into statuses.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>

#include "context.h"

using namespace ebsynth;

struct ebsynth_context {
  std::unique_ptr<Engine> engine;
  ebsynth_backend backend;
  std::string error;
};

namespace {

[[noreturn]] void refuse(const std::string &message) { throw Failure{EBSYNTH_INVALID_ARGUMENT, message}; }

void check_range(const char *name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    refuse(std::string(name) + " is " + std::to_string(value) + " (choose " + std::to_string(low) + " to " + std::to_string(high) + ")");
}

void check_patch(const char *name, int patch, int smallest = EBSYNTH_MIN_PATCH_SIZE) {
  check_range(name, patch, smallest, EBSYNTH_MAX_PATCH_SIZE);
  if (patch % 2 == 0) refuse(std::string(name) + " is " + std::to_string(patch) + ", but must be odd");
}

void check_weight(const char *name, float weight) {
  if (!(weight >= 0 && weight <= EBSYNTH_MAX_WEIGHT)) refuse(std::string(name) + " must be 0 to 1e6");  // rejects NaN, too
}

void check_pointer(const char *name, const void *pointer, bool needed = true) {
  if (needed && !pointer) refuse(std::string(name) + " is NULL");
}

// The size of each struct in version 1.0.
template <class Call>
constexpr size_t kOldest = sizeof(Call);
template <>
constexpr size_t kOldest<ebsynth_matching> = offsetof(ebsynth_matching, border);
template <>
constexpr size_t kOldest<ebsynth_remapping> = offsetof(ebsynth_remapping, border);
template <>
constexpr size_t kOldest<ebsynth_errors> = offsetof(ebsynth_errors, border);

// Returns the call with zeros for members that callers compiled with an older header do not have.
template <class Call>
Call complete(const Call *call) {
  check_pointer("call", call);
  if (call->struct_size < kOldest<Call>) refuse("struct_size is too small: was this program compiled with an older ebsynth.h?");
  Call whole{};
  std::memcpy(&whole, call, std::min<size_t>(call->struct_size, sizeof(Call)));
  return whole;
}

// Checks what all calls have: memory, batch and sides.
template <class Call>
void check_common(const ebsynth_context &context, const Call *call) {
  check_range("memory", call->memory, EBSYNTH_HOST, EBSYNTH_DEVICE);
  if (call->memory == EBSYNTH_DEVICE && context.backend != EBSYNTH_CUDA) refuse("memory is on the device, but the context runs on the CPU");
  check_range("batch", call->batch, 0, INT32_MAX);
  check_range("source_height", call->source_height, 1, EBSYNTH_MAX_SIDE);
  check_range("source_width", call->source_width, 1, EBSYNTH_MAX_SIDE);
  check_range("target_height", call->target_height, 1, EBSYNTH_MAX_SIDE);
  check_range("target_width", call->target_width, 1, EBSYNTH_MAX_SIDE);
}

// Groups channels of equal weight into quads, styles and guides separately, and drops those of weight 0.
Weights arrange(const std::vector<double> &weights, int style_channels, bool modulated) {
  Weights out{};
  double total = 0;
  for (double w : weights) total += w;
  if (!(total > 0)) refuse("all weights are 0");
  out.scale = 268435456.0 / total;
  std::fill(out.layout.channel, out.layout.channel + kMaxStride, (int8_t)-1);
  int quads = 0;
  std::vector<bool> done(weights.size());
  for (size_t first = 0; first < weights.size(); ++first) {
    if (done[first] || weights[first] <= 0) continue;
    const size_t end = (int)first < style_channels ? style_channels : weights.size();
    int in_quad = kQuad;
    for (size_t c = first; c < end; ++c) {
      if (done[c] || weights[c] != weights[first]) continue;
      if (in_quad == kQuad) {
        out.quads[quads++] = (uint32_t)(weights[first] * out.scale / (modulated ? 255.0 : 1.0) + 0.5);
        in_quad = 0;
      }
      out.layout.channel[kQuad * (quads - 1) + in_quad++] = (int8_t)c;
      done[c] = true;
    }
  }
  out.layout.stride = kQuad;
  while (out.layout.stride < kQuad * quads) out.layout.stride *= 2;
  return out;
}

// Limits pyramid levels to as many as leave the shorter side 2 * patch + 1; 0 asks for the maximum.
template <class Call>
int levels_of(const Call &call, int asked, int patch) {
  int side = std::min({call.source_height, call.source_width, call.target_height, call.target_width}), most = 1;
  for (; side / 2 >= 2 * patch + 1; side /= 2) ++most;
  return asked ? std::min(asked, most) : most;
}

template <class Call>
Problem problem_of(const Call &call) {
  Problem p{};
  p.batch = call.batch;
  p.source_height = call.source_height, p.source_width = call.source_width;
  p.target_height = call.target_height, p.target_width = call.target_width;
  p.style_channels = call.style_channels, p.guide_channels = call.guide_channels;
  return p;
}

Problem check(const ebsynth_context &context, const ebsynth_synthesis *call) {
  check_common(context, call);
  const ebsynth_synthesis &c = *call;
  check_range("style_channels", c.style_channels, 1, EBSYNTH_MAX_STYLE_CHANNELS);
  check_range("guide_channels", c.guide_channels, 0, EBSYNTH_MAX_GUIDE_CHANNELS);
  check_pointer("source_style", c.source_style, c.batch > 0);
  check_pointer("source_guides", c.source_guides, c.batch > 0 && c.guide_channels > 0);
  check_pointer("target_guides", c.target_guides, c.batch > 0 && c.guide_channels > 0);
  check_pointer("image", c.image, c.batch > 0);
  check_pointer("style_weights", c.style_weights);
  check_pointer("guide_weights", c.guide_weights, c.guide_channels > 0);
  for (int k = 0; k < c.style_channels; ++k) check_weight("a style weight", c.style_weights[k]);
  for (int k = 0; k < c.guide_channels; ++k) check_weight("a guide weight", c.guide_weights[k]);
  check_weight("uniformity", c.uniformity);
  check_patch("patch_size", c.patch_size);
  check_range("pyramid_levels", c.pyramid_levels, 0, 16);
  check_range("search_vote_iterations", c.search_vote_iterations, 0, 1000);
  check_range("patch_match_iterations", c.patch_match_iterations, 0, 1000);
  check_range("stop_threshold", c.stop_threshold, 0, 255);
  check_range("vote", c.vote, EBSYNTH_VOTE_PLAIN, EBSYNTH_VOTE_WEIGHTED);

  Problem p = problem_of(c);
  p.source_style = c.source_style, p.source_guides = c.source_guides, p.target_guides = c.target_guides;
  p.modulation = c.guide_channels ? c.target_modulation : nullptr;
  std::vector<double> weights(c.style_weights, c.style_weights + c.style_channels);
  if (c.guide_channels) weights.insert(weights.end(), c.guide_weights, c.guide_weights + c.guide_channels);
  p.weights = arrange(weights, c.style_channels, p.modulation != nullptr);
  p.painted = true;
  p.levels = levels_of(c, c.pyramid_levels, c.patch_size);
  p.patches.assign(c.search_vote_iterations, c.patch_size);
  p.largest_patch = c.patch_size;
  p.sweeps = c.patch_match_iterations;
  p.uniformity = c.uniformity;
  p.threshold = c.stop_threshold;
  p.weighted_vote = c.vote == EBSYNTH_VOTE_WEIGHTED;
  p.extra_pass = c.extra_pass_3x3 != 0;
  p.start = EBSYNTH_START_RANDOM;
  p.seed = c.seed;
  p.image = c.image, p.nnf = c.nnf, p.error = c.error;
  return p;
}

// Checks what matching and patch errors share.
template <class Call>
Problem check_pair(const Call &c) {
  check_range("style_channels", c.style_channels, 0, EBSYNTH_MAX_STYLE_CHANNELS);
  check_range("guide_channels", c.guide_channels, 0, EBSYNTH_MAX_GUIDE_CHANNELS);
  check_pointer("source_style", c.source_style, c.batch > 0 && c.style_channels > 0);
  check_pointer("source_guide", c.source_guide, c.batch > 0 && c.guide_channels > 0);
  check_pointer("target_guide", c.target_guide, c.batch > 0 && c.guide_channels > 0);
  check_range("border", c.border, EBSYNTH_BORDER_REPEAT, EBSYNTH_BORDER_ZERO);
  check_weight("style_weight", c.style_weight);
  check_weight("guide_weight", c.guide_weight);
  Problem p = problem_of(c);
  p.zero_border = c.border == EBSYNTH_BORDER_ZERO;
  p.source_style = c.source_style, p.target_style = c.target_style, p.source_guides = c.source_guide, p.target_guides = c.target_guide;
  std::vector<double> weights;
  for (int k = 0; k < c.style_channels; ++k) weights.push_back((double)c.style_weight / c.style_channels);
  for (int k = 0; k < c.guide_channels; ++k) weights.push_back((double)c.guide_weight / c.guide_channels);
  p.weights = arrange(weights, c.style_channels, false);
  return p;
}

Problem check(const ebsynth_context &context, const ebsynth_matching *call) {
  check_common(context, call);
  const ebsynth_matching &c = *call;
  Problem p = check_pair(c);
  check_pointer("nnf", c.nnf, c.batch > 0);
  check_pointer("patch_sizes", c.patch_sizes);
  check_range("rounds", c.rounds, 1, EBSYNTH_MAX_ROUNDS);
  for (int k = 0; k < c.rounds; ++k) check_patch("a patch size", c.patch_sizes[k]);
  check_range("pyramid_levels", c.pyramid_levels, 0, 16);
  check_range("patch_match_iterations", c.patch_match_iterations, 0, 1000);
  check_range("search_radius", c.search_radius, 0, EBSYNTH_MAX_SIDE);
  check_range("start", c.start, EBSYNTH_START_IDENTITY, EBSYNTH_START_GIVEN);
  p.painted = c.style_channels > 0 && !c.target_style;
  p.patches.assign(c.patch_sizes, c.patch_sizes + c.rounds);
  p.largest_patch = *std::max_element(p.patches.begin(), p.patches.end());
  p.levels = levels_of(c, c.pyramid_levels, p.largest_patch);
  p.sweeps = c.patch_match_iterations;
  p.radius = c.search_radius;
  p.start = c.start;
  p.seed = c.seed;
  p.nnf = c.nnf, p.error = c.error;
  return p;
}

Problem check(const ebsynth_context &context, const ebsynth_errors *call) {
  check_common(context, call);
  Problem p = check_pair(*call);
  check_pointer("target_style", call->target_style, call->batch > 0 && call->style_channels > 0);
  check_pointer("nnf", call->nnf, call->batch > 0);
  check_pointer("error", call->error, call->batch > 0);
  check_patch("patch_size", call->patch_size);
  p.nnf = const_cast<int32_t *>(call->nnf);  // never written here
  p.error = call->error;
  return p;
}

void check(const ebsynth_context &context, const ebsynth_remapping *call) {
  check_common(context, call);
  check_range("channels", call->channels, 1, EBSYNTH_MAX_STYLE_CHANNELS);
  check_patch("patch_size", call->patch_size, 1);
  check_range("border", call->border, EBSYNTH_BORDER_REPEAT, EBSYNTH_BORDER_ZERO);
  check_pointer("source", call->source, call->batch > 0);
  check_pointer("nnf", call->nnf, call->batch > 0);
  check_pointer("image", call->image, call->batch > 0);
}

// Of the thread's last ebsynth_create. A context that was not created cannot hold it.
thread_local std::string creation_error;

void check(const ebsynth_settings *settings) {
  check_pointer("settings", settings);
  if (settings->struct_size < sizeof(ebsynth_settings)) refuse("struct_size is too small");
  check_range("backend", settings->backend, EBSYNTH_AUTO, EBSYNTH_CUDA);
  check_range("device", settings->device, 0, INT32_MAX);
  check_range("threads", settings->threads, 0, EBSYNTH_MAX_THREADS);
}

// Runs `work` and turns exceptions into a status and a message.
template <class Work>
ebsynth_status guarded(std::string &error, Work work) {
  try {
    error.clear();
    work();
    return EBSYNTH_OK;
  } catch (const Failure &failure) {
    try {
      error = failure.message;
    } catch (...) {
    }
    return failure.status;
  } catch (const std::bad_alloc &) {
    error = "out of memory";  // short enough to need no allocation
    return EBSYNTH_OUT_OF_MEMORY;
  } catch (...) {
    error = "internal";
    return EBSYNTH_INTERNAL_ERROR;
  }
}

template <class Work>
ebsynth_status guarded(ebsynth_context *context, Work work) {
  return context ? guarded(context->error, work) : EBSYNTH_INVALID_ARGUMENT;
}

// Sets `backend` to the one that was made. EBSYNTH_AUTO falls back to the CPU where CUDA cannot run.
std::unique_ptr<Engine> make_engine(const ebsynth_settings &settings, ebsynth_backend &backend) {
  if (settings.backend != EBSYNTH_CPU) {
    try {
      backend = EBSYNTH_CUDA;
      return make_cuda_engine(settings);
    } catch (const Failure &failure) {
      if (settings.backend == EBSYNTH_CUDA || failure.status != EBSYNTH_NO_BACKEND) throw;
    }
  }
  backend = EBSYNTH_CPU;
  return make_cpu_engine(settings);
}

void set_text(char *to, size_t size, const char *text) {
  std::strncpy(to, text, size - 1);
  to[size - 1] = 0;
}

}  // namespace

#if !defined(EB_HAVE_CUDA)
namespace ebsynth {
std::unique_ptr<Engine> make_cuda_engine(const ebsynth_settings &) {
  throw Failure{EBSYNTH_NO_BACKEND, "this library was built without CUDA"};
}
int cuda_device_count() { return 0; }
}  // namespace ebsynth
#endif

ebsynth_status ebsynth_get_info(ebsynth_info *info) {
  if (!info || info->struct_size < sizeof(ebsynth_info)) return EBSYNTH_INVALID_ARGUMENT;
  info->version = EBSYNTH_VERSION;
#if defined(EB_HAVE_CUDA)
  info->cuda_built = 1;
#else
  info->cuda_built = 0;
#endif
  info->cuda_devices = cuda_device_count();
  info->cpu_threads = cpu_thread_count();
  set_text(info->cpu_kernels, sizeof info->cpu_kernels, cpu_kernels_name());
  set_text(info->compiler, sizeof info->compiler, EB_COMPILER);
  set_text(info->cuda_toolkit, sizeof info->cuda_toolkit, EB_CUDA_TOOLKIT);
  set_text(info->cuda_architectures, sizeof info->cuda_architectures, EB_CUDA_ARCHITECTURES);
  return EBSYNTH_OK;
}

ebsynth_status ebsynth_create(const ebsynth_settings *settings, ebsynth_context **context) {
  if (!context) return EBSYNTH_INVALID_ARGUMENT;
  *context = nullptr;
  return guarded(creation_error, [&] {
    check(settings);
    auto made = std::make_unique<ebsynth_context>();
    made->engine = make_engine(*settings, made->backend);
    *context = made.release();
  });
}

void ebsynth_destroy(ebsynth_context *context) { delete context; }

const char *ebsynth_last_error(const ebsynth_context *context) { return (context ? context->error : creation_error).c_str(); }

ebsynth_status ebsynth_synthesize(ebsynth_context *context, const ebsynth_synthesis *call) {
  return guarded(context, [&] {
    const auto whole = complete(call);
    const Problem problem = check(*context, &whole);
    if (problem.batch) context->engine->solve(problem, whole.memory, whole.stream);
  });
}

ebsynth_status ebsynth_match(ebsynth_context *context, const ebsynth_matching *call) {
  return guarded(context, [&] {
    const auto whole = complete(call);
    const Problem problem = check(*context, &whole);
    if (problem.batch) context->engine->solve(problem, whole.memory, whole.stream);
  });
}

ebsynth_status ebsynth_remap(ebsynth_context *context, const ebsynth_remapping *call) {
  return guarded(context, [&] {
    const ebsynth_remapping whole = complete(call);
    check(*context, &whole);
    if (whole.batch) context->engine->remap(whole);
  });
}

ebsynth_status ebsynth_patch_error(ebsynth_context *context, const ebsynth_errors *call) {
  return guarded(context, [&] {
    const ebsynth_errors whole = complete(call);
    const Problem problem = check(*context, &whole);
    if (problem.batch) context->engine->patch_error(problem, whole.patch_size, whole.memory, whole.stream);
  });
}
