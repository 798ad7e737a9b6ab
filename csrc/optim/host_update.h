// AdamW with fp32 state in host memory (dist.offload: optimizer): gradients come down, parameters
// go up, and both run beside the update of other groups on the CPU cores. Only in builds with CUDA.
#pragma once

#ifdef MGM_WITH_CUDA

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <functional>
#include <vector>

#include "dist/param_store.h"

namespace mgm {

class HostUpdate {
 public:
  explicit HostUpdate(const std::vector<ParamGroup*>& groups);

  // `update(i, grad, copy)` updates group i on the CPU from its fp32 gradient [part] and leaves the
  // new weights in `copy`, bf16 [part]; both are host memory. What is issued on the current stream
  // afterwards sees the new weights.
  using Update = std::function<void(size_t group, const float* grad, at::Tensor& copy)>;
  void run(const Update& update);

 private:
  struct Slot {
    at::Tensor grad, copy;  // page-locked
  };
  void fetch(size_t group);

  std::vector<ParamGroup*> groups_;
  std::array<Slot, 3> slots_;  // one coming down, one under update, one going up
  c10::cuda::CUDAStream down_, up_;
};

}  // namespace mgm

#endif
