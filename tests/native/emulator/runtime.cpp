// The emulated CUDA runtime: devices, memory, streams and the calls of the library. threads.cpp says what it is for.

#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <map>

#include "emulator.h"

namespace emulator {
namespace {

constexpr size_t kPage = 4096;

// -- memory ------------------------------------------------------------------------------------------------------------

struct Allocation {
  char *pages;
  size_t size, bytes;  // of the pages; asked for
  int device;
};

std::map<void *, Allocation> memory;
thread_local int current_device = 0;

// Lets kernels and copies of a device touch its memory for a scope.
class Access {
 public:
  explicit Access(int device) : device_(device) { protect(PROT_READ | PROT_WRITE); }
  ~Access() { protect(PROT_NONE); }

 private:
  void protect(int rights) const {
    for (const auto &[data, block] : memory)
      if (block.device == device_) mprotect(block.pages, block.size, rights);
  }
  const int device_;
};

// Like CUDA since 12.0, makes a device's context when a thread selects the device.
void select(int device) {
  current_device = device;
  emulated_counts.contexts |= 1 << device;
}

bool fails() { return emulated_machine.calls_left >= 0 && emulated_machine.calls_left-- == 0; }

cudaError_t allocate(void **data, size_t bytes, int device) {
  const std::lock_guard lock(mutex);
  if (fails()) return cudaErrorUnknown;
  if (emulated_machine.allocations_left == 0) return cudaErrorMemoryAllocation;
  if (emulated_machine.allocations_left > 0) --emulated_machine.allocations_left;
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  char *pages = (char *)mmap(nullptr, size + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + kPage;
  mprotect(pages, size, PROT_READ | PROT_WRITE);
  std::memset(pages, 0xCD, size);  // what nobody has written is not 0
  mprotect(pages, size, PROT_NONE);
  *data = pages + (size - bytes) / 256 * 256;  // as near to the guard page behind it as CUDA's alignment allows
  memory[*data] = {pages, size, bytes, device};
  auto &counts = emulated_counts;
  ++counts.allocations, ++counts.live, counts.live_bytes += bytes;
  counts.peak_bytes = std::max(counts.peak_bytes, counts.live_bytes);
  return cudaSuccess;
}

void release(void *data) {
  const auto found = memory.find(data);
  if (found == memory.end()) abort_because("memory is freed that is not allocated");
  const Allocation block = found->second;
  memory.erase(found);
  munmap(block.pages - kPage, block.size + 2 * kPage);
  --emulated_counts.live, emulated_counts.live_bytes -= block.bytes;
}

}  // namespace

// For tests, which own memory on a device as callers of the library do.
EXPORTED void *emulated_allocate(size_t bytes, int device) {
  void *data = nullptr;
  return allocate(&data, bytes, device) == cudaSuccess ? data : nullptr;
}
EXPORTED void emulated_release(void *data) {
  const std::lock_guard lock(mutex);
  release(data);
}
EXPORTED void emulated_copy(void *to, const void *from, size_t bytes, int device) {
  const std::lock_guard lock(mutex);
  const Access access(device);
  std::memcpy(to, from, bytes);
}

namespace {

// -- streams -----------------------------------------------------------------------------------------------------------

std::map<cudaStream_t, std::deque<std::function<void()>>> queues;

cudaError_t queue(cudaStream_t stream, std::function<void()> work, bool can_fail = true) {
  const std::lock_guard lock(mutex);
  if (can_fail && fails()) return cudaErrorUnknown;
  queues[stream].push_back(std::move(work));
  return cudaSuccess;
}

void run_queue(cudaStream_t stream) {
  auto &work = queues[stream];
  for (; !work.empty(); work.pop_front()) work.front()();
}

}  // namespace
}  // namespace emulator

using namespace emulator;

struct EmulatedPool {
  int device;
};

cudaError_t emulated_launch(const cudaLaunchConfig_t &config, std::function<void()> thread) {
  const dim3 g = config.gridDim, b = config.blockDim;
  const bool fits = g.x && g.y && g.z && g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535;
  if (!fits || !b.x || !b.y || !b.z || (uint64_t)b.x * b.y * b.z > kMaxThreads) return cudaErrorInvalidConfiguration;
  return queue(config.stream, [g, b, thread, device = current_device] {
    const Access access(device);
    run_grid(g, b, thread);
    ++emulated_counts.launches;
  });
}

cudaError_t emulated_attributes(cudaFuncAttributes *attributes) {
  attributes->numRegs = 0;
  return emulated_machine.runs_code ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    default: return "unknown error";
  }
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulated_machine.devices) return cudaErrorInvalidDevice;
  select(device);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *devices) {
  *devices = 0;
  if (emulated_machine.driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  if (!emulated_machine.devices) return cudaErrorNoDevice;
  *devices = emulated_machine.devices;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
  *version = emulated_machine.driver;
  return cudaSuccess;
}

static int get_context_state(int device, unsigned *flags, int *active) {
  *flags = 0, *active = (int)(emulated_counts.contexts >> device & 1);
  return 0;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
  const bool known = !std::strcmp(name, "cuDevicePrimaryCtxGetState");
  *function = known ? (void *)get_context_state : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) {
  *value = emulated_machine.has_pools;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const cudaMemPoolProps *properties) {
  if (fails()) return cudaErrorUnknown;
  *pool = new EmulatedPool{properties->location.id};
  ++emulated_counts.pools;
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete pool;
  --emulated_counts.pools;
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

cudaError_t cudaMallocFromPoolAsync(void **data, size_t bytes, cudaMemPool_t pool, cudaStream_t) {
  return allocate(data, bytes, pool->device);
}

cudaError_t cudaFreeAsync(void *data, cudaStream_t stream) {
  return queue(stream, [data] { release(data); }, false);
}

cudaError_t cudaMalloc(void **data, size_t bytes) { return allocate(data, bytes, current_device); }

cudaError_t cudaFree(void *data) {
  const std::lock_guard lock(mutex);
  for (auto &[stream, work] : queues) run_queue(stream);
  release(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return queue(stream, [to, from, bytes, device = current_device] {
    const Access access(device);
    std::memcpy(to, from, bytes);
  });
}

cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
  return queue(stream, [data, value, bytes, device = current_device] {
    const Access access(device);
    std::memset(data, value, bytes);
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard lock(mutex);
  run_queue(stream);
  ++emulated_counts.synchronizations;
  return fails() ? cudaErrorUnknown : cudaSuccess;
}
