// Linear layers whose weight is held in fewer bits: dequantised for each product and dropped.
#pragma once

#include <ATen/core/Tensor.h>

#include "types/packed_weight.h"

namespace mgm::ops {

// weight [out, in] float32 or bfloat16 -> the same matrix packed, on its device.
PackedWeight pack_weight(const at::Tensor& weight, WeightFormat format);

// [out, in] float32 or bfloat16: the fp32 value rounded once.
at::Tensor unpack_weight(const PackedWeight& weight, at::ScalarType dtype);

// x [..., in] -> x W^T [..., out], W dequantised to x's dtype, as at::linear computes it. The
// gradient of x dequantises once more; the weight has none. Nothing but the packed weight is saved.
at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& weight);

}  // namespace mgm::ops
