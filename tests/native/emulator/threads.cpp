// Runs CUDA kernels on a CPU, to test cuda.cu where there is no GPU. This half has threads, warps and blocks.
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

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "emulator.h"

#if !defined(__x86_64__)
#error "The emulator switches between fibers in the assembly language of x86-64."
#endif

Machine emulated_machine;
Counts emulated_counts;
dim3 threadIdx, blockIdx, blockDim, gridDim;

// Saves the registers that a function must preserve, and the stack pointer in *from; continues where `to` was saved.
extern "C" void switch_fiber(void **from, void *to);

namespace emulator {

std::recursive_mutex mutex;

void abort_because(const char *reason) {
  std::fprintf(stderr, "CUDA emulator: %s (block %u, %u, %u, thread %u)\n", reason, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

namespace {

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

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

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

}  // namespace

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

__attribute__((noinline)) uint64_t meet(Meeting meeting, uint64_t value, int lane, unsigned mask) {
  Fiber &f = fibers[running];
  f.meeting = meeting, f.value = value, f.lane = lane, f.mask = mask;
  f.state = meeting == Meeting::kBarrier || meeting == Meeting::kBarrierOr ? State::kInBlock : State::kInWarp;
  switch_fiber(&f.stack_pointer, scheduler);
  return f.value;
}

}  // namespace emulator
