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

}  // namespace

}  // namespace ebsynth
