// The CPU back end: OpenMP over rows and tiles, vector kernels chosen at run time.

#include <cstring>
#include <map>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#endif

#include "context.h"
#include "kernels.h"
#include "solver.h"

namespace ebsynth {

namespace {

const Kernels &kernels() {
#if defined(EB_HAVE_AVX2) && defined(_WIN32)
  if (IsProcessorFeaturePresent(PF_AVX2_INSTRUCTIONS_AVAILABLE)) return kAvx2Kernels;
#elif defined(EB_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2")) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

// Scratch memory, cached by size for later calls.
class Pool {
 public:
  ~Pool() { trim(); }

  void *take(size_t bytes) {
    auto found = free_.find(bytes);
    if (found != free_.end()) {
      void *data = found->second;
      free_.erase(found);
      return data;
    }
    return ::operator new(bytes, kAlignment);
  }
  void give(void *data, size_t bytes) { free_.emplace(bytes, data); }
  void trim() {
    for (auto &block : free_) ::operator delete(block.second, kAlignment);
    free_.clear();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::multimap<size_t, void *> free_;
};

constexpr int kBand = 32;    // rows per task
constexpr int kStrip = 64;   // columns per task
[[maybe_unused]] constexpr int64_t kMinParallel = 8192;  // pixels; below this, starting threads costs more than it saves

class CpuBackend {
 public:
  template <class T>
  class Buffer {
   public:
    Buffer() = default;
    Buffer(Pool &pool, size_t count) : pool_(&pool), bytes_((count * sizeof(T) + 127) / 64 * 64), data_((T *)pool.take(bytes_)) {}
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

  CpuBackend(Pool &pool, int threads, ebsynth_progress progress, void *user)
      : pool_(pool), threads_(threads), progress_(progress), user_(user) {}

  template <class T>
  Buffer<T> buffer(size_t count) { return Buffer<T>(pool_, count); }

  template <class Op>
  void each(int batch, int height, int width, const Op &op) {
    const int64_t rows = (int64_t)batch * height;
#pragma omp parallel for num_threads(rows * width < kMinParallel ? 1 : threads_) schedule(dynamic, 16)
    for (int64_t r = 0; r < rows; ++r) {
      const int item = (int)(r / height), y = (int)(r % height);
      for (int x = 0; x < width; ++x) op(item, y, x);
    }
  }

  void copy(uint8_t *to, const uint8_t *from, size_t bytes) { std::memcpy(to, from, bytes); }

  void errors(const Level &level) {
    const int64_t rows = (int64_t)level.batch * level.target_height;
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t r = 0; r < rows; ++r) {
      const int y = (int)(r % level.target_height);
      kernels().errors(level, (int)(r / level.target_height), y, y + 1);
    }
  }

  // Running sums down the columns, then along the row, one task per band of rows.
  void sums(float *out, const uint8_t *features, int batch, int height, int width, int border, int stride, int patch) {
    const int inset = border - patch / 2, bands = (height + kBand - 1) / kBand;
    const size_t pitch = (size_t)(width + 2 * border) * stride, row_bytes = (size_t)(width + patch - 1) * stride;
    Buffer<uint32_t> columns = buffer<uint32_t>(row_bytes * threads_);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t task = 0; task < (int64_t)batch * bands; ++task) {
      const int item = (int)(task / bands), y0 = (int)(task % bands) * kBand, y1 = std::min(y0 + kBand, height);
      const uint8_t *from = features + item * pitch * (height + 2 * border) + inset * pitch + (size_t)inset * stride;
      uint32_t *column = columns.data() + row_bytes * thread();
      std::fill(column, column + row_bytes, 0u);
      for (int k = y0; k < y0 + patch - 1; ++k)
        for (size_t b = 0; b < row_bytes; ++b) column[b] += from[k * pitch + b];
      for (int y = y0; y < y1; ++y) {
        const uint8_t *enters = from + (y + patch - 1) * pitch, *leaves = from + y * pitch;
        for (size_t b = 0; b < row_bytes; ++b) column[b] += enters[b];
        kernels().sum_row(out + ((size_t)item * height + y) * width * stride, column, width, stride, patch);
        for (size_t b = 0; b < row_bytes; ++b) column[b] -= leaves[b];
      }
    }
  }

  // Sums along rows and along columns commute, so two passes over the memory suffice.
  void box(uint32_t *out, const uint32_t *in, int batch, int height, int width, int patch, int times, int64_t most) {
    if (most > UINT32_MAX) return saturating_box(out, in, batch, height, width, patch, times);
    const int strips = (width + kStrip - 1) / kStrip;
    const size_t pixels = (size_t)height * width;
    Buffer<uint32_t> row_sums = buffer<uint32_t>((size_t)width * threads_), along_rows = buffer<uint32_t>(pixels * batch);
    Buffer<uint32_t> sums = buffer<uint32_t>(pixels * batch);
    uint32_t *scratch = along_rows.data();
#pragma omp parallel num_threads(batch * pixels < kMinParallel ? 1 : threads_)
    {
#pragma omp for schedule(dynamic, 16)
      for (int64_t r = 0; r < (int64_t)batch * height; ++r) {
        uint32_t *once = times == 1 ? scratch + r * width : row_sums.data() + (size_t)width * thread();
        kernels().box_row(once, in + r * width, width, patch, false);
        if (times == 2) kernels().box_row(scratch + r * width, once, width, patch, true);
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < (int64_t)batch * strips; ++task) {
        const int x = (int)(task % strips) * kStrip, columns = std::min(kStrip, width - x);
        const size_t at = task / strips * pixels + x;
        uint32_t *once = times == 1 ? out : sums.data();
        kernels().box_columns(once + at, scratch + at, height, width, columns, patch, false);
        if (times == 2) kernels().box_columns(out + at, once + at, height, width, columns, patch, true);
      }
    }
  }

  void count(const Level &level, uint32_t *used) {
    const size_t source = (size_t)level.source_height * level.source_width, target = (size_t)level.target_height * level.target_width;
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int item = 0; item < level.batch; ++item) {
      uint32_t *mine = used + item * source;
      std::memset(mine, 0, source * sizeof(uint32_t));
      for (size_t i = 0; i < target; ++i) {
        const uint32_t e = level.field[item * target + i];
        ++mine[(size_t)row(e) * level.source_width + column(e)];
      }
    }
  }

  void sweep(const Level &level, bool forward, int shift, int colour, uint32_t key) {
    const int across = (level.target_width + shift + kTile - 1) / kTile, down = (level.target_height + shift + kTile - 1) / kTile;
    const int64_t tiles = (int64_t)level.batch * down * across;
#pragma omp parallel for num_threads(tiles * kTile * kTile < kMinParallel ? 1 : threads_) schedule(dynamic, 16)
    for (int64_t t = 0; t < tiles; ++t) {
      const int item = (int)(t / (down * across)), ty = (int)(t / across % down), tx = (int)(t % across);
      if (colour != kAllColours && tile_colour(ty, tx) != colour) continue;
      const int y = ty * kTile - shift, x = tx * kTile - shift;
      kernels().sweep(level, item, std::max(y, 0), std::max(x, 0), std::min(y + kTile, level.target_height), std::min(x + kTile, level.target_width), forward, key);
    }
  }

  void vote(int batch, int height, int width, const Vote &op) {
    if (op.weight) return each(batch, height, width, op);
    const size_t row_sums = (size_t)(width + op.patch) * op.stride;
    Buffer<uint32_t> sums = buffer<uint32_t>(row_sums * threads_);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
    for (int64_t r = 0; r < (int64_t)batch * height; ++r)
      kernels().vote_row(op, (int)(r / height), (int)(r % height), sums.data() + row_sums * thread());
  }

  void progress(float fraction) {
    if (progress_ && progress_(user_, fraction)) throw Failure{EBSYNTH_CANCELLED, "cancelled by the progress callback"};
  }

 private:
  void saturating_box(uint32_t *out, const uint32_t *in, int batch, int height, int width, int patch, int times) {
    Buffer<uint32_t> along_rows = buffer<uint32_t>((size_t)batch * height * width);
    for (int k = 0; k < times; ++k) {
      each(batch, height, width, BoxSum{along_rows.data(), k ? out : in, height, width, patch, true, k > 0});
      each(batch, height, width, BoxSum{out, along_rows.data(), height, width, patch, false, k > 0});
    }
  }

  static int thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
  }

  Pool &pool_;
  int threads_;
  ebsynth_progress progress_;
  void *user_;
};

class CpuEngine : public Engine {
 public:
  explicit CpuEngine(const ebsynth_settings &settings)
      : backend_(pool_, settings.threads ? settings.threads : cpu_thread_count(), settings.progress, settings.user) {}

  void solve(const Problem &problem, ebsynth_memory, void *) override { Solver<CpuBackend>(backend_, problem).solve(); }
  void remap(const ebsynth_remapping &call) override { remap_fields(backend_, call); }
  void patch_error(const Problem &problem, int patch, ebsynth_memory, void *) override { patch_errors_of(backend_, problem, patch); }

 private:
  Pool pool_;
  CpuBackend backend_;
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(const ebsynth_settings &settings) { return std::make_unique<CpuEngine>(settings); }

int cpu_thread_count() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

const char *cpu_kernels_name() { return kernels().name; }

}  // namespace ebsynth
