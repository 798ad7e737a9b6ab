// The CUDA stream our kernels run on: the current one of a tensor's device, which is made current
// while the object lives. Only in builds with CUDA.
#pragma once

#ifdef MGM_WITH_CUDA

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace mgm::ops {

class DeviceStream {
 public:
  explicit DeviceStream(const at::Tensor& tensor) : guard_(tensor.device()) {}
  CUstream_st* stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }

 private:
  c10::cuda::CUDAGuard guard_;
};

}  // namespace mgm::ops

#endif
