// Depthwise convolution of NHWC maps on a GPU, with its gradients (kernels/depthwise.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace mgm::ops {

// Whether depthwise() takes these: on a GPU, float32 or bfloat16, weight [C, 1, 7, 7] with C a
// multiple of 8. Stride 1 and padding 3 are the caller's to see to.
bool has_depthwise(const at::Tensor& x_NHWC, const at::Tensor& weight);

// y [N, H, W, C] of x [N, H, W, C] and bias [C]. Kept for the gradients are x and weight.
at::Tensor depthwise(const at::Tensor& x_NHWC, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias);

}  // namespace mgm::ops
