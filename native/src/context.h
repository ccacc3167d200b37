// The interface between the C interface and the back ends.
#pragma once

#include <memory>
#include <string>

#include "problem.h"

namespace ebsynth {

// A back end behind the C interface. Functions throw Failure or std::bad_alloc.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual void solve(const Problem &problem, ebsynth_memory memory, void *stream) = 0;
  virtual void remap(const ebsynth_remapping &call) = 0;
  virtual void patch_error(const Problem &problem, int patch, ebsynth_memory memory, void *stream) = 0;
};

std::unique_ptr<Engine> make_cpu_engine(const ebsynth_settings &settings);
std::unique_ptr<Engine> make_cuda_engine(const ebsynth_settings &settings);  // throws Failure(EBSYNTH_NO_BACKEND)
int cuda_device_count();  // 0 without CUDA, device or driver
int cpu_thread_count();
const char *cpu_kernels_name();

}  // namespace ebsynth
