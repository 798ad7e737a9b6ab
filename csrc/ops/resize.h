// Bilinear resize with a backward that repeats bit for bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mgm::ops {

// x [N, C, H, W] float32 or float64 -> [N, C, height, width]; at::upsample_bilinear2d with
// align_corners False, to the bit. Its own backward adds with atomics on CUDA and refuses
// deterministic mode; here the gradient is two products with the (transposed) 1-D interpolation
// matrices, rows then columns.
at::Tensor resize_bilinear(const at::Tensor& x_NCHW, int64_t height, int64_t width);

}  // namespace mgm::ops
