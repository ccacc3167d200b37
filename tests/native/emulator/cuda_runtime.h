// Stands in for the CUDA runtime, so that a C++ compiler can build cuda.cu and a CPU can run it. It has what the library
// uses, no more. threads.cpp says how kernels run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // blocks run one after another

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

enum class Meeting { kShuffle, kShuffleXor, kAny, kBallot, kBarrier, kBarrierOr };

// Suspends the calling thread until its warp (for barriers: its block) has come to the same meeting.
uint64_t meet(Meeting meeting, uint64_t value, int lane = 0, unsigned mask = 0xffffffffu);

template <class T>
T exchange(Meeting meeting, unsigned mask, T value, int lane) {
  static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= sizeof(uint64_t), "what CUDA can shuffle");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet(meeting, bits, lane, mask);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(emulator::Meeting::kBarrier, 0); }
inline int __syncthreads_or(int condition) { return (int)emulator::meet(emulator::Meeting::kBarrierOr, condition != 0); }
inline int __any_sync(unsigned mask, int condition) { return (int)emulator::meet(emulator::Meeting::kAny, condition != 0, 0, mask); }
inline unsigned __ballot_sync(unsigned mask, int condition) {
  return (unsigned)emulator::meet(emulator::Meeting::kBallot, condition != 0, 0, mask);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulator::exchange(emulator::Meeting::kShuffle, mask, value, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulator::exchange(emulator::Meeting::kShuffleXor, mask, value, lanes);
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __ffs(unsigned bits) { return __builtin_ffs((int)bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned __vabsdiffu4(unsigned a, unsigned b) {
  unsigned bytes = 0;
  for (int shift = 0; shift < 32; shift += 8) {
    const int difference = (int)(a >> shift & 255) - (int)(b >> shift & 255);
    bytes |= (unsigned)(difference < 0 ? -difference : difference) << shift;
  }
  return bytes;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b >> shift & 255);
  return sum;
}
struct alignas(16) float4 {
  float x, y, z, w;
};
template <class T>
T atomicAdd(T *at, T value) {
  const T before = *at;
  *at += value;
  return before;
}
template <class T>
T atomicSub(T *at, T value) {
  const T before = *at;
  *at -= value;
  return before;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnknown = 999,
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum cudaDeviceAttr { cudaDevAttrMemoryPoolsSupported = 115 };
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};
struct cudaFuncAttributes {
  int numRegs;
};
using cudaStream_t = struct Stream *;
using cudaMemPool_t = struct EmulatedPool *;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

const char *cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaDriverGetVersion(int *);
cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int device);
cudaError_t cudaMemPoolCreate(cudaMemPool_t *, const cudaMemPoolProps *);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t);
cudaError_t cudaMallocFromPoolAsync(void **, size_t, cudaMemPool_t, cudaStream_t);
cudaError_t cudaFreeAsync(void *, cudaStream_t);
cudaError_t cudaMalloc(void **, size_t);
cudaError_t cudaFree(void *);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void *, int value, size_t, cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *);
cudaError_t emulated_launch(const cudaLaunchConfig_t &, std::function<void()> thread);
cudaError_t emulated_attributes(cudaFuncAttributes *);

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, Kernel *) {
  return emulated_attributes(attributes);
}

// Arguments are copied when a kernel is launched, as CUDA does.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...), Arguments &&...arguments) {
  const std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  return emulated_launch(*config, [kernel, copies] { std::apply(kernel, copies); });
}
