#include "train/profile.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include "base/log.h"
#include "base/strings.h"
#ifdef MGM_WITH_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace mgm {
namespace {

namespace kineto = torch::profiler::impl;

std::set<kineto::ActivityType> activities(bool cuda) {
  std::set<kineto::ActivityType> out = {kineto::ActivityType::CPU};
  if (cuda) out.insert(kineto::ActivityType::CUDA);
  return out;
}

kineto::ProfilerConfig settings() { return kineto::ProfilerConfig(kineto::ProfilerState::KINETO); }

void wait_for_device([[maybe_unused]] bool cuda) {
#ifdef MGM_WITH_CUDA
  if (cuda) c10::cuda::device_synchronize();
#endif
}

}  // namespace

StepProfiler::StepProfiler(const LogConfig& config, fs::path path, bool cuda)
    : first_(config.profile_first),
      last_(config.profile_first + config.profile_steps - 1),
      path_(std::move(path)),
      cuda_(cuda) {}

void StepProfiler::before_step(int64_t step) {
  if (first_ == 0 || step != first_) return;
  wait_for_device(cuda_);
  torch::autograd::profiler::prepareProfiler(settings(), activities(cuda_));
  torch::autograd::profiler::enableProfiler(settings(), activities(cuda_));
}

void StepProfiler::after_step(int64_t step) {
  if (first_ == 0 || step != last_) return;
  wait_for_device(cuda_);
  torch::autograd::profiler::disableProfiler()->save(path_.string());
  log::info(cat("timeline of steps ", first_, " to ", last_, ": ", path_.string()));
}

}  // namespace mgm
