// The CUDA back end. A warp processes a pixel. Its lanes form teams, each of which compares the patches of one candidate. A
// block processes a tile along antidiagonals. All work of a call is queued on one stream.

#include <cuda_runtime.h>

#include <map>
#include <new>
#include <type_traits>

#include "context.h"
#include "solver.h"

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

  // Tries the candidates of lanes 0..count-1. Taking the first of the cheapest candidates that are tried together gives the
  // same result as taking, one after the other, each that is cheaper than the best so far.
  __device__ void consider(Choice &best, const uint8_t *t, uint32_t e, bool valid, int count) const {
    const int64_t extra = valid && e != best.entry ? cost_of_use(e) : kNever;
    for (int k = 0; k < count; k += kTeams) {
      const uint32_t tried = __shfl_sync(kAll, e, k + team);
      const int64_t limit = best.cost - __shfl_sync(kAll, extra, k + team);
      const int64_t found = error(t, at_source(tried), limit), gain = limit - found;
      if (!__any_sync(kAll, gain > 0)) continue;
      int64_t most = 0;
      int lane = 0;
      for (int other = 0; other < kWarp; other += kTeam) {
        const int64_t theirs = __shfl_sync(kAll, gain, other);
        if (theirs > most) most = theirs, lane = other;
      }
      best = {__shfl_sync(kAll, tried, lane), __shfl_sync(kAll, found, lane), best.cost - most};
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
  const int across = (tiles(level.target_width, shift) + 1) / 2, down = (tiles(level.target_height, shift) + 1) / 2;
  const int item = blockIdx.x / across / down;
  int tile_y = blockIdx.x / across % down * 2, tile_x = blockIdx.x % across * 2;
  for (int k = 0; k < kColours; ++k)
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
  const size_t i = place(item, y, first_x + lane * step, level.target_height, level.target_width);
  const bool active = inside && (!level.active || level.active[i]);
  const unsigned row_active = __ballot_sync(kAll, active);
  __shared__ Choice tile[kTile][kTile];
  if (inside) {
    const uint32_t e = level.field[i];
    const int64_t error = level.error[i];
    tile[r][lane] = {e, error, error + search.cost_of_use(e)};
  }
  if (!__syncthreads_or(active)) return;

  for (int diagonal = 0; diagonal < height + width - 1; ++diagonal, __syncthreads()) {
    const int c = diagonal - r;
    if (c < 0 || !(row_active >> c & 1)) continue;
    Choice best = tile[r][c];
    const uint8_t *t = search.at_target(y, first_x + c * step);

#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
      uint32_t e = best.entry;
      int count = 0;
      bool valid;
      if (round == 0) {
        // Lane 0 tries the neighbour in the row, lane 1 the one in the column.
        valid = lane == 0 ? c > 0 : lane == 1 && r > 0;
        count = 2;
        if (valid) {
          const uint32_t beside = lane == 0 ? tile[r][c - 1].entry : tile[r - 1][c].entry;
          const int sy = row(beside) + (lane == 0 ? 0 : step), sx = column(beside) + (lane == 0 ? step : 0);
          valid = sy >= 0 && sy < level.source_height && sx >= 0 && sx < level.source_width;
          e = entry(sy, sx);
        }
      } else {
        // Each lane draws one of the random candidates.
        uint32_t bits = mix(key, (uint32_t)place(item, y, first_x + c * step, level.target_height, level.target_width));
        uint32_t drawn = 0;
        int radius = 0;
        for (int length = level.radius; length >= 1; length /= level.shrink, ++count) {
          bits = mix(bits);
          if (lane == count) drawn = bits, radius = length;
        }
        valid = radius > 0;
        e = random_near(best.entry, radius, level.source_height, level.source_width, drawn);
      }
      search.consider(best, t, e, valid, count);
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

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error for later calls
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw Failure{EBSYNTH_DEVICE_ERROR, std::string("CUDA: ") + cudaGetErrorString(status)};
}

// For destructors, where errors are already reported or cannot be handled.
void ignore(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
}

// Makes a device the thread's current one for a scope.
class Current {
 public:
  explicit Current(int device) : device_(device) {
    check(cudaGetDevice(&before_));
    if (before_ != device_) check(cudaSetDevice(device_));
  }
  ~Current() { if (before_ != device_) ignore(cudaSetDevice(before_)); }
  Current(const Current &) = delete;

 private:
  int device_, before_ = 0;
};

// Scratch memory, allocated and freed in stream order: from a CUDA memory pool or, without one, from a cache by size.
class Pool {
 public:
  explicit Pool(int device) {
    int supported = 0;
    check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device));
    if (!supported) return;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    check(cudaMemPoolCreate(&pool_, &properties));
    uint64_t keep = UINT64_MAX;
    ignore(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
  }
  ~Pool() {
    trim();
    if (pool_) ignore(cudaMemPoolDestroy(pool_));
  }
  Pool(const Pool &) = delete;

  void *take(size_t bytes) {
    const auto found = free_.find(bytes);
    if (found != free_.end()) {
      void *data = found->second;
      free_.erase(found);
      return data;
    }
    void *data = nullptr;
    cudaError_t status = allocate(&data, bytes);
    if (status == cudaErrorMemoryAllocation) {
      ignore(status);
      check(cudaStreamSynchronize(stream));
      trim();
      status = allocate(&data, bytes);
    }
    check(status);
    return data;
  }
  void give(void *data, size_t bytes) {
    if (pool_) ignore(cudaFreeAsync(data, stream));
    else free_.emplace(bytes, data);
  }

  cudaStream_t stream = nullptr;  // of the current call

 private:
  cudaError_t allocate(void **data, size_t bytes) {
    return pool_ ? cudaMallocFromPoolAsync(data, bytes, pool_, stream) : cudaMalloc(data, bytes);
  }
  void trim() {
    if (pool_) ignore(cudaMemPoolTrimTo(pool_, 0));
    for (auto &block : free_) ignore(cudaFree(block.second));
    free_.clear();
  }

  cudaMemPool_t pool_ = nullptr;
  std::multimap<size_t, void *> free_;
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

  static constexpr bool kUsesSums = false;
  void sums(float *, const uint8_t *, int, int, int, int, int, int) {}

  void box(uint32_t *out, const uint32_t *in, uint32_t *scratch, int batch, int height, int width, int patch, int times, int64_t) {
    plain_box(*this, out, in, scratch, batch, height, width, patch, times);
  }

  void count(const Level &l, uint32_t *used) {
    check(cudaMemsetAsync(used, 0, (size_t)l.batch * l.source_height * l.source_width * sizeof(uint32_t), pool_.stream));
    const Count op{used, l.field, l.target_height, l.target_width, l.source_height, l.source_width};
    each(l.batch, l.target_height, l.target_width, op);
  }

  void sweep(const Level &level, bool forward, int shift, int colour, uint32_t key) {
    const int64_t across = (tiles(level.target_width, shift) + 1) / 2, down = (tiles(level.target_height, shift) + 1) / 2;
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
