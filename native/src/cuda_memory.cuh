// Errors, devices and scratch memory of CUDA.

#pragma once

#include <cuda_runtime.h>

#include <map>
#include <new>
#include <string>

#include "context.h"

namespace ebsynth {

namespace {

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

// Whether a device has a context, as far as that can be found out; else true.
bool has_context(int device) {
  using GetState = int (*)(int device, unsigned *flags, int *active);
  void *found = nullptr;
  cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
  const auto status = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found, 7000, cudaEnableDefault, &result);
#else
  const auto status = cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &found, cudaEnableDefault, &result);
#endif
  ignore(status);
  unsigned flags = 0;
  int active = 1;
  return status != cudaSuccess || !found || ((GetState)found)(device, &flags, &active) != 0 || active;
}

// Makes a device the thread's current one for a scope. Afterwards the device before is current again, unless it has no
// context, which selecting it would create.
class Current {
 public:
  explicit Current(int device) : device_(device) {
    check(cudaGetDevice(&before_));
    if (before_ != device_) check(cudaSetDevice(device_));
  }
  ~Current() { if (before_ != device_ && has_context(before_)) ignore(cudaSetDevice(before_)); }
  Current(const Current &) = delete;

 private:
  int device_, before_ = 0;
};

constexpr uint64_t kKept = 256 << 20;  // bytes that a context keeps for the next call

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
    uint64_t keep = kKept;
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

}  // namespace

}  // namespace ebsynth
