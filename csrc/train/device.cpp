#include "train/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/AutogradState.h>
#include <sys/resource.h>

#include <cstdlib>
#include <thread>

#include "base/error.h"
#ifdef MGM_WITH_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace mgm {
namespace {

bool gpus_are_masked() { return std::getenv("CUDA_VISIBLE_DEVICES") != nullptr; }

}  // namespace

int visible_gpus() { return at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0; }

void use_gpu([[maybe_unused]] at::Device device) {
#ifdef MGM_WITH_CUDA
  c10::cuda::set_device(device.index());
#endif
}

uint64_t gpu_free_bytes(at::Device device) {
  try {
    at::globalContext().lazyInitDevice(device.type());
    return at::getDeviceAllocator(device.type())->getMemoryInfo(device.index()).first;
  } catch (const c10::Error& e) {
    throw ConfigError("GPU ", int{device.index()}, " cannot be used: ", e.what_without_backtrace(),
                      "; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
}

DeviceSetup setup_device(const TrainConfig& config, int local_rank, int local_world) {
  DeviceSetup setup;
  const bool want_cuda = config.device == DeviceKind::kCuda ||
                         (config.device == DeviceKind::kAuto && visible_gpus() > 0);
  if (want_cuda) {
    if (visible_gpus() == 0) {
      throw ConfigError(
          "train.device: cuda, but ",
          at::hasCUDA() ? "no GPU is visible" : "this build has no CUDA",
          "; use --set train.device=cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES");
    }
    // A launcher may show each process one GPU alone.
    const int gpu = visible_gpus() == 1 && local_world > 1 && gpus_are_masked() ? 0 : local_rank;
    if (gpu >= visible_gpus()) {
      throw ConfigError("local rank ", local_rank, " of ", local_world,
                        " has no GPU: ", visible_gpus(), " visible; start one process per GPU");
    }
    setup.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(gpu));
    use_gpu(setup.device);
    // Of several stages in one process each has a peak of its own.
    at::globalContext().lazyInitDevice(at::kCUDA);
    at::getDeviceAllocator(at::kCUDA)->resetPeakStats(setup.device.index());
  }
  switch (config.dtype) {
    case DtypeKind::kAuto:
      setup.dtype = want_cuda ? at::kBFloat16 : at::kFloat;
      break;
    case DtypeKind::kFloat32:
      setup.dtype = at::kFloat;
      break;
    case DtypeKind::kBfloat16:
      setup.dtype = at::kBFloat16;
      break;
  }
  const auto threads = config.threads > 0
                           ? static_cast<int>(config.threads)
                           : static_cast<int>(std::thread::hardware_concurrency()) / local_world;
  at::set_num_threads(threads < 1 ? 1 : threads);
  at::Context& context = at::globalContext();
  context.setAllowTF32CuBLAS(false);  // fp32 means fp32; bf16 runs do not use TF32
  context.setAllowTF32CuDNN(false);
  if (config.deterministic && want_cuda) {
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    context.setDeterministicAlgorithms(true, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);
  }
  // cuDNN's search starts anew for every number of pictures, up to 2 s for each convolution; a step
  // of MGM-7B took 781 ms with it and without. It may also choose otherwise from run to run.
  context.setBenchmarkCuDNN(false);
  // Hooks and recomputation then run on the thread that called backward, with its settings.
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
  return setup;
}

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_cpu()) {
    struct rusage usage {};
    ::getrusage(RUSAGE_SELF, &usage);
    return static_cast<int64_t>(usage.ru_maxrss) * 1024;
  }
  return at::getDeviceAllocator(device.type())
      ->getDeviceStats(device.index())
      .allocated_bytes[0]
      .peak;
}

std::string device_name(at::Device device) {
  if (device.is_cpu()) return cat("cpu, ", at::get_num_threads(), " threads");
  return device.str();
}

}  // namespace mgm
