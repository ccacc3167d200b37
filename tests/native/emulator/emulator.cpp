// Runs CUDA kernels on a CPU, to test cuda.cu where there is no GPU.
//
// Every thread of a block is a fiber that runs until it comes to a collective operation; blocks run one after another.
// Work is queued and runs when a stream is synchronised, as late as CUDA may run it. Each allocation has pages of its own
// before a guard page, and only the kernels and copies of its device may touch it.
//
// The process aborts with a message where CUDA's behaviour would be undefined: lanes of a warp that meet in different
// collectives or that have ended, threads at different barriers, deadlocks, memory that is freed twice. It crashes where
// memory is touched that is not allocated, not on this device, or (from the host) on a device.
//
// It says nothing about time, about the code that nvcc makes, or about what threads see of each other's writes to memory
// between barriers, except that orders of warps, lanes and blocks can be shuffled.

#include "cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#error "The emulator switches between fibers in the assembly language of x86-64."
#endif

// Set and read by tests.
extern "C" {
__attribute__((visibility("default"))) struct {
  int32_t devices = 2, driver = CUDART_VERSION;  // driver 0: none is installed
  int32_t runs_code = 1;                         // 0: the library has no code for these cards
  int32_t has_pools = 1;
  int32_t shuffle = 0;            // seed of the order of lanes, warps and blocks; 0 = in order
  int64_t allocations_left = -1;  // then memory is used up; -1 = unlimited
  int64_t calls_left = -1;        // then calls that can fail do; -1 = unlimited
} emulated_machine;
__attribute__((visibility("default"))) struct {
  int64_t launches, blocks, exchanges;  // exchanges: xor shuffles of a warp
  int64_t allocations, live, live_bytes, peak_bytes, pools, synchronizations;
  int64_t contexts;  // bit N: device N has one
} emulated_counts;
}

// Saves the registers that a function must preserve, and the stack pointer in *from; continues where `to` was saved.
extern "C" void switch_fiber(void **from, void *to);

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

std::recursive_mutex mutex;  // one host thread at a time uses the machine

[[noreturn]] void abort_because(const char *reason) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, %u, %u, thread %u)\n", reason, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

// -- fibers ------------------------------------------------------------------------------------------------------------

asm(R"(
.pushsection .text
.hidden switch_fiber
.globl switch_fiber
.type switch_fiber, @function
switch_fiber:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size switch_fiber, .-switch_fiber
.popsection
)");

constexpr int kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10, kPage = 4096;

enum class State { kReady, kInWarp, kInBlock, kEnded };

struct Fiber {
  void *stack_pointer;
  State state;
  dim3 index;
  Meeting meeting;
  uint64_t value;  // brought to the meeting, then its result
  int lane;
  unsigned mask;
};

Fiber fibers[kMaxThreads];
int running;
void *scheduler;
const std::function<void()> *thread_body;

void begin_fiber() {
  (*thread_body)();
  fibers[running].state = State::kEnded;
  switch_fiber(&fibers[running].stack_pointer, scheduler);
}

char *stack_of(int thread) {
  static char *const stacks =
      (char *)mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return stacks + thread * kStack;
}

void prepare_fiber(int thread) {
  void **top = (void **)(stack_of(thread) + kStack);
  top[-2] = (void *)begin_fiber;  // where `ret` goes, which leaves the stack aligned as after a call
  const dim3 index(thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y);
  fibers[thread] = {top - 8, State::kReady, index, {}, 0, 0, 0};
}

void run_fiber(int thread) {
  running = thread;
  threadIdx = fibers[thread].index;
  switch_fiber(&scheduler, fibers[thread].stack_pointer);
}

// -- blocks ------------------------------------------------------------------------------------------------------------

std::minstd_rand random_order;

bool shuffles() { return emulated_machine.shuffle != 0; }

class Block {
 public:
  explicit Block(int threads) : threads_(threads), warps_((threads + kWarp - 1) / kWarp), lanes_(kWarp) {
    std::iota(warps_.begin(), warps_.end(), 0);
    std::iota(lanes_.begin(), lanes_.end(), 0);
    for (int k = 0; k < threads; ++k) prepare_fiber(k);
  }

  void run() {
    while (count(0, threads_, State::kEnded) < threads_) {
      bool moved = false;
      if (shuffles()) std::shuffle(warps_.begin(), warps_.end(), random_order);
      for (const int warp : warps_) moved |= run_warp(warp);
      if (!moved) leave_barrier();
    }
  }

 private:
  int count(int first, int end, State state) const {
    return (int)std::count_if(fibers + first, fibers + end, [&](const Fiber &f) { return f.state == state; });
  }

  // Runs a warp to the end, to a barrier or, if shuffled, for a while. Returns whether any lane ran.
  bool run_warp(int warp) {
    const int first = warp * kWarp, end = std::min(first + kWarp, threads_);
    bool moved = false;
    for (int steps = shuffles() ? 1 + (int)(random_order() % 32) : -1; steps; --steps) {
      if (shuffles()) std::shuffle(lanes_.begin(), lanes_.end(), random_order);
      bool ran = false;
      for (const int lane : lanes_)
        if (first + lane < end && fibers[first + lane].state == State::kReady) run_fiber(first + lane), ran = true;
      if (!ran) break;
      moved = true;
      const int waiting = count(first, end, State::kInWarp);
      if (!waiting) break;
      if (waiting < end - first) abort_because("lanes wait for others of their warp that never come");
      leave_warp_meeting(first, end);
    }
    return moved;
  }

  static void leave_warp_meeting(int first, int end) {
    uint64_t ballot = 0, values[kWarp];
    for (int k = first; k < end; ++k) {
      const Fiber &f = fibers[k];
      if (f.meeting != fibers[first].meeting) abort_because("lanes of a warp are in different collectives");
      if (f.mask != 0xffffffffu || end - first < kWarp) abort_because("a collective does not name just the lanes of its warp");
      values[k - first] = f.value;
      ballot |= (uint64_t)(f.value & 1) << (k - first);
    }
    if (fibers[first].meeting == Meeting::kShuffleXor) ++emulated_counts.exchanges;
    for (int k = first; k < end; ++k) {
      Fiber &f = fibers[k];
      switch (f.meeting) {
        case Meeting::kShuffle: f.value = values[f.lane & (kWarp - 1)]; break;
        case Meeting::kShuffleXor: f.value = values[(k - first) ^ f.lane]; break;
        case Meeting::kAny: f.value = ballot != 0; break;
        default: f.value = ballot;
      }
      f.state = State::kReady;
    }
  }

  void leave_barrier() {
    uint64_t any = 0;
    for (int k = 0; k < threads_; ++k) {
      if (fibers[k].state != State::kInBlock) abort_because("threads wait at a barrier that others never come to");
      if (fibers[k].meeting != fibers[0].meeting) abort_because("threads wait at different barriers");
      any |= fibers[k].value;
    }
    for (int k = 0; k < threads_; ++k) fibers[k].value = any, fibers[k].state = State::kReady;
  }

  const int threads_;
  std::vector<int> warps_, lanes_;
};

void run_grid(dim3 grid, dim3 block, const std::function<void()> &thread) {
  gridDim = grid, blockDim = block, thread_body = &thread;
  random_order.seed((unsigned)(emulated_machine.shuffle + emulated_counts.launches));
  std::vector<unsigned> order((size_t)grid.x * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  if (shuffles()) std::shuffle(order.begin(), order.end(), random_order);
  for (const unsigned k : order) {
    blockIdx = dim3(k % grid.x, k / grid.x % grid.y, k / grid.x / grid.y);
    ++emulated_counts.blocks;
    Block((int)(block.x * block.y * block.z)).run();
  }
}

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
#define EXPORTED extern "C" __attribute__((visibility("default")))
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

__attribute__((noinline)) uint64_t meet(Meeting meeting, uint64_t value, int lane, unsigned mask) {
  Fiber &f = fibers[running];
  f.meeting = meeting, f.value = value, f.lane = lane, f.mask = mask;
  f.state = meeting == Meeting::kBarrier || meeting == Meeting::kBarrierOr ? State::kInBlock : State::kInWarp;
  switch_fiber(&f.stack_pointer, scheduler);
  return f.value;
}

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
