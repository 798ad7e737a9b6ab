// The device and numeric settings of a run.
#pragma once

#include <ATen/core/Tensor.h>

#include "config/run_config.h"

namespace mgm {

struct DeviceSetup {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
};

// `local_rank` is the GPU this process takes and `local_world` how many processes share the host's
// cores. Resolves train.device and train.dtype and sets what is process-wide: threads, TF32 off for
// fp32, deterministic algorithms, backward on the calling thread. Once per run, before its first
// tensor on a GPU; peak_memory_bytes() of a GPU counts from here. Throws ConfigError when cuda is
// asked for and there is none, or fewer than ranks.
DeviceSetup setup_device(const TrainConfig& config, int local_rank = 0, int local_world = 1);

int visible_gpus();               // 0 in a build without CUDA
void use_gpu(at::Device device);  // the one that counts as current from now on
// Costs the memory of a context on it. Throws ConfigError for one that cannot be used.
uint64_t gpu_free_bytes(at::Device device);
// Allocated on a GPU since setup_device(); on the CPU the process's largest resident set.
int64_t peak_memory_bytes(at::Device device);
std::string device_name(at::Device device);

}  // namespace mgm
