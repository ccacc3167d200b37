// The CUDA back end. All work of a call is queued on one stream.

#include <cuda_runtime.h>

#include <type_traits>

#include "context.h"
#include "cuda_box.cuh"
#include "cuda_memory.cuh"
#include "cuda_search.cuh"
#include "solver.h"

namespace ebsynth {

namespace {

template <class Op>
__global__ void __launch_bounds__(kBlock) each_kernel(const __grid_constant__ Op op, int batch, int height, int width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  for (unsigned item = blockIdx.z; item < (unsigned)batch; item += gridDim.z) op(item, y, x);
}

struct Count {
  uint32_t *used;
  const uint32_t *field;
  int height, width, source_height, source_width;

  __device__ void operator()(int item, int y, int x) const {
    const uint32_t e = field[place(item, y, x, height, width)];
    atomicAdd(used + place(item, row(e), column(e), source_height, source_width), 1u);
  }
};

// Sums of features over the rows of patches. A row above and below the image counts where patches reach it.
struct SumRow {
  uint32_t *out;  // [batch, height + patch - 1, width, stride]
  const uint8_t *features;
  int height, width, border, stride, patch;

  __device__ void operator()(int item, int y, int x) const {
    const int inset = border - patch / 2;
    const uint8_t *from = features + place(item, y + inset, x + inset, height + 2 * border, width + 2 * border) * stride;
    uint32_t *to = out + place(item, y, x, height + patch - 1, width) * stride;
    for (int quad = 0; quad < stride; quad += kQuad) {
      uint32_t sum[kQuad] = {};
      for (int k = 0; k < patch; ++k) {
        const uint32_t word = *(const uint32_t *)(from + k * stride + quad);
        for (int c = 0; c < kQuad; ++c) sum[c] += word >> 8 * c & 255;
      }
      for (int c = 0; c < kQuad; ++c) to[quad + c] = sum[c];
    }
  }
};

// Sums over patches from those over their rows.
struct SumColumn {
  float *out;
  const uint32_t *rows;
  int height, width, stride, patch;

  __device__ void operator()(int item, int y, int x) const {
    const uint32_t *from = rows + place(item, y, x, height + patch - 1, width) * stride;
    float *to = out + place(item, y, x, height, width) * stride;
    for (int c = 0; c < stride; ++c) {
      uint32_t sum = 0;
      for (int k = 0; k < patch; ++k) sum += from[(size_t)k * width * stride + c];
      to[c] = (float)sum;
    }
  }
};

// Like Vote, with sums in registers: all channels of a pixel at once.
template <int Count>
struct WideVote {
  Vote v;

  __device__ void operator()(int item, int y, int x) const {
    const int radius = v.patch / 2, pitch = v.source_width + 2 * v.border;
    const Words<Count> *from =
        (const Words<Count> *)v.source + place(item, v.border, v.border, v.source_height + 2 * v.border, pitch);
    uint64_t sum[kQuad * Count] = {}, count = 0;
    for (int ty = max(y - radius, 0); ty <= min(y + radius, v.height - 1); ++ty)
      for (int tx = max(x - radius, 0); tx <= min(x + radius, v.width - 1); ++tx) {
        const size_t i = place(item, ty, tx, v.height, v.width);
        const uint32_t e = v.field[i], w = v.weight ? v.weight[i] : 1;
        const Words<Count> s = from[(ptrdiff_t)(row(e) + y - ty) * pitch + column(e) + x - tx];
        count += w;
#pragma unroll
        for (int c = 0; c < kQuad * Count; ++c) sum[c] += (uint64_t)w * (s.word[c / kQuad] >> c % kQuad * 8 & 255);
      }
    uint8_t *out = v.image + place(item, y, x, v.height, v.width) * v.channels;
#pragma unroll
    for (int c = 0; c < kQuad * Count; ++c)
      if (c < v.channels) out[c] = (uint8_t)((2 * sum[c] + count) / (2 * count));
  }
};

template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(Parameters...), const Arguments &...arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Calls use(stride, modulated) with compile-time constants.
template <int Stride = kMaxStride, class Use>
void by_layout(const Level &level, Use use) {
  if constexpr (Stride > kQuad)
    if (level.stride < Stride) return by_layout<Stride / 2>(level, use);
  if (level.modulation) use(std::integral_constant<int, Stride>(), std::true_type());
  else use(std::integral_constant<int, Stride>(), std::false_type());
}

class CudaBackend {
 public:
  template <class T>
  class Buffer {
   public:
    Buffer() = default;
    Buffer(Pool &pool, size_t count) : pool_(&pool), bytes_((count * sizeof(T) + 256) / 256 * 256), data_((T *)pool.take(bytes_)) {}
    Buffer(Buffer &&other) noexcept { *this = std::move(other); }
    Buffer &operator=(Buffer &&other) noexcept {
      std::swap(pool_, other.pool_), std::swap(bytes_, other.bytes_), std::swap(data_, other.data_);
      return *this;
    }
    ~Buffer() { if (data_) pool_->give(data_, bytes_); }
    T *data() const { return data_; }

   private:
    Pool *pool_ = nullptr;
    size_t bytes_ = 0;
    T *data_ = nullptr;
  };

  CudaBackend(Pool &pool, ebsynth_progress progress, void *user) : pool_(pool), progress_(progress), user_(user) {}

  template <class T>
  Buffer<T> buffer(size_t count) { return Buffer<T>(pool_, count); }

  template <class Op>
  void each(int batch, int height, int width, const Op &op) {
    if (batch <= 0 || height <= 0 || width <= 0) return;
    const dim3 block(kWarp, kBlock / kWarp);
    const dim3 blocks = grid((width + block.x - 1) / block.x, (height + block.y - 1) / block.y, batch);
    launch(pool_.stream, blocks, block, each_kernel<Op>, op, batch, height, width);
  }

  void copy(void *to, const void *from, size_t bytes) {
    if (bytes) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, pool_.stream));
  }

  void errors(const Level &level) {
    if (level.batch <= 0) return;
    const dim3 blocks = grid((level.target_width + kBlock / kTeam - 1) / (kBlock / kTeam), level.target_height, level.batch);
    by_layout(level, [&](auto stride, auto modulated) {
      launch(pool_.stream, blocks, kBlock, errors_kernel<decltype(stride)::value, decltype(modulated)::value>, level);
    });
  }

  void sums(float *out, const uint8_t *features, int batch, int height, int width, int border, int stride, int patch) {
    const int rows = height + patch - 1;
    auto by_row = buffer<uint32_t>((size_t)batch * rows * width * stride);
    each(batch, rows, width, SumRow{by_row.data(), features, height, width, border, stride, patch});
    each(batch, height, width, SumColumn{out, by_row.data(), height, width, stride, patch});
  }

  void box(uint32_t *out, const uint32_t *in, int batch, int height, int width, int patch, int times, int64_t) {
    if (batch <= 0 || height <= 0 || width <= 0) return;
    const dim3 blocks = grid((width + kBoxSide - 1) / kBoxSide, (height + kBoxSide - 1) / kBoxSide, batch);
    launch(pool_.stream, blocks, dim3(kBoxSide, kBoxRows), box_kernel, Box{out, in, batch, height, width, patch / 2, times == 2});
  }

  void count(const Level &l, uint32_t *used) {
    check(cudaMemsetAsync(used, 0, (size_t)l.batch * l.source_height * l.source_width * sizeof(uint32_t), pool_.stream));
    const Count op{used, l.field, l.target_height, l.target_width, l.source_height, l.source_width};
    each(l.batch, l.target_height, l.target_width, op);
  }

  void sweep(const Level &level, bool forward, int shift, int colour, uint32_t key) {
    const int every = colour == kAllColours ? 1 : 2;
    const int64_t across = (tiles(level.target_width, shift) + every - 1) / every;
    const int64_t down = (tiles(level.target_height, shift) + every - 1) / every;
    const int64_t blocks = level.batch * across * down;
    if (blocks <= 0) return;
    if (blocks > INT32_MAX) throw std::bad_alloc();  // no device has enough memory for that
    by_layout(level, [&](auto stride, auto modulated) {
      launch(pool_.stream, (unsigned)blocks, kTile * kWarp, sweep_kernel<decltype(stride)::value, decltype(modulated)::value>,
             level, forward, shift, colour, key);
    });
  }

  void vote(int batch, int height, int width, const Vote &op) {
    if (op.stride == kQuad) each(batch, height, width, WideVote<1>{op});
    else each(batch, height, width, WideVote<2>{op});
  }

  void progress(float fraction) {
    if (!progress_) return;
    check(cudaStreamSynchronize(pool_.stream));
    if (progress_(user_, fraction)) throw Failure{EBSYNTH_CANCELLED, "cancelled by the progress callback"};
  }

 private:
  // Grids are at most 65535 blocks deep; kernels loop over larger batches.
  static dim3 grid(int across, int down, int batch) { return dim3(across, down, std::min(batch, 65535)); }

  Pool &pool_;
  ebsynth_progress progress_;
  void *user_;
};

// Copies a call's arguments from the host to the device, and results back.
class Transfer {
 public:
  Transfer(CudaBackend &backend, ebsynth_memory memory) : backend_(backend), from_host_(memory == EBSYNTH_HOST) {}

  template <class T>
  void in(const T *&data, size_t count) {
    if (from_host_ && data) data = (const T *)device((void *)data, count * sizeof(T), true);
  }
  template <class T>
  void out(T *&data, size_t count, bool also_in = false) {
    if (!from_host_ || !data) return;
    T *host = data;
    data = (T *)device(host, count * sizeof(T), also_in);
    results_.push_back({host, data, count * sizeof(T)});
  }
  void inputs(Problem &p) {
    const size_t source = (size_t)p.batch * p.source_height * p.source_width;
    const size_t target = (size_t)p.batch * p.target_height * p.target_width;
    in(p.source_style, source * p.style_channels), in(p.target_style, target * p.style_channels);
    in(p.source_guides, source * p.guide_channels), in(p.target_guides, target * p.guide_channels);
    in(p.modulation, target * p.guide_channels);
  }
  void finish() {
    for (const Result &r : results_) backend_.copy(r.host, r.device, r.bytes);
  }

 private:
  struct Result {
    void *host, *device;
    size_t bytes;
  };

  void *device(void *host, size_t bytes, bool copied) {
    copies_.push_back(backend_.buffer<uint8_t>(bytes));
    if (copied) backend_.copy(copies_.back().data(), host, bytes);
    return copies_.back().data();
  }

  CudaBackend &backend_;
  bool from_host_;
  std::vector<CudaBackend::Buffer<uint8_t>> copies_;
  std::vector<Result> results_;
};

class CudaEngine : public Engine {
 public:
  explicit CudaEngine(const ebsynth_settings &settings)
      : device_(settings.device), pool_(settings.device), backend_(pool_, settings.progress, settings.user) {}

  void solve(const Problem &problem, ebsynth_memory memory, void *stream) override {
    run(memory, stream, [&](Transfer &transfer) {
      Problem p = problem;
      const size_t target = (size_t)p.batch * p.target_height * p.target_width;
      transfer.inputs(p);
      transfer.out(p.image, target * p.style_channels);
      transfer.out(p.nnf, target * 2, p.start == EBSYNTH_START_GIVEN);
      transfer.out(p.error, target);
      Solver<CudaBackend>(backend_, p).solve();
    });
  }

  void remap(const ebsynth_remapping &call) override {
    run(call.memory, call.stream, [&](Transfer &transfer) {
      ebsynth_remapping c = call;
      const size_t source = (size_t)c.batch * c.source_height * c.source_width;
      const size_t target = (size_t)c.batch * c.target_height * c.target_width;
      transfer.in(c.source, source * c.channels);
      transfer.in(c.nnf, target * 2);
      transfer.out(c.image, target * c.channels);
      remap_fields(backend_, c);
    });
  }

  void patch_error(const Problem &problem, int patch, ebsynth_memory memory, void *stream) override {
    run(memory, stream, [&](Transfer &transfer) {
      Problem p = problem;
      const size_t target = (size_t)p.batch * p.target_height * p.target_width;
      const int32_t *nnf = p.nnf;
      transfer.inputs(p);
      transfer.in(nnf, target * 2);
      transfer.out(p.error, target);
      p.nnf = const_cast<int32_t *>(nnf);
      patch_errors_of(backend_, p, patch);
    });
  }

 private:
  // Waits for all work when a call ends, even by an exception: its memory belongs to the caller.
  struct Over {
    cudaStream_t stream;
    ~Over() { ignore(cudaStreamSynchronize(stream)); }
  };

  template <class Work>
  void run(ebsynth_memory memory, void *stream, Work work) {
    const Current current(device_);
    pool_.stream = (cudaStream_t)stream;
    const Over over{pool_.stream};
    Transfer transfer(backend_, memory);
    work(transfer);
    transfer.finish();
    check(cudaStreamSynchronize(pool_.stream));
  }

  int device_;
  Pool pool_;
  CudaBackend backend_;
};

std::string version(int cuda) { return std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10); }

// Throws unless the device can run this library's code.
void require(int device) {
  const auto fail = [](const std::string &why) { throw Failure{EBSYNTH_NO_BACKEND, why}; };
  int devices = 0, driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  ignore(status);
  ignore(cudaDriverGetVersion(&driver));
  if (!driver) fail("no NVIDIA driver was found");
  if (status == cudaErrorInsufficientDriver)
    fail("the NVIDIA driver is too old: it supports CUDA " + version(driver) + ", but this library needs CUDA " + version(CUDART_VERSION));
  if (status != cudaSuccess) fail(std::string("no CUDA device can be used: ") + cudaGetErrorString(status));
  if (device < 0 || device >= devices)
    fail("there is no CUDA device " + std::to_string(device) + "; the last one is " + std::to_string(devices - 1));
  try {
    const Current current(device);
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, errors_kernel<kQuad, false>));
  } catch (const Failure &failure) {
    fail("CUDA device " + std::to_string(device) + " cannot be used: " + failure.message);
  }
}

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(const ebsynth_settings &settings) {
  require(settings.device);
  return std::make_unique<CudaEngine>(settings);
}

int cuda_device_count() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  ignore(status);
  return status == cudaSuccess ? devices : 0;
}

}  // namespace ebsynth
