// What the two halves of the emulator share.
#pragma once

#include <functional>
#include <mutex>

#include "cuda_runtime.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Set by tests.
struct Machine {
  int32_t devices = 2, driver = CUDART_VERSION;  // driver 0: none is installed
  int32_t runs_code = 1;                         // 0: the library has no code for these cards
  int32_t has_pools = 1;
  int32_t shuffle = 0;            // seed of the order of lanes, warps and blocks; 0 = in order
  int64_t allocations_left = -1;  // then memory is used up; -1 = unlimited
  int64_t calls_left = -1;        // then calls that can fail do; -1 = unlimited
};

// Read by tests.
struct Counts {
  int64_t launches, blocks, exchanges;  // exchanges: xor shuffles of a warp
  int64_t allocations, live, live_bytes, peak_bytes, pools, synchronizations;
  int64_t contexts;  // bit N: device N has one
};

EXPORTED Machine emulated_machine;
EXPORTED Counts emulated_counts;

namespace emulator {

extern std::recursive_mutex mutex;  // one host thread at a time uses the machine
constexpr int kMaxThreads = 1024;   // per block

[[noreturn]] void abort_because(const char *reason);

// Runs a kernel to its end. `thread` is called once per thread.
void run_grid(dim3 grid, dim3 block, const std::function<void()> &thread);

}  // namespace emulator
