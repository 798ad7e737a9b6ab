// The attention of a decode step on our own kernel (kernels/decode_attention.h). Shape suffixes: R
// rows, H query heads, K key heads (K divides H), D head width, C cached tokens there is room for.
#pragma once

#include <ATen/core/Tensor.h>

namespace mgm::ops {

// Whether decode_attention() takes such tensors: float32 and bfloat16; on a GPU widths up to 256
// that divide by 8.
bool decode_attention_takes(at::Device device, at::ScalarType dtype, int64_t width);

// One fresh query per row over its cached keys and values: q [R, H, D]; k, v [R, C, K, D], the
// first rows of a cache; int64 positions [R] on the same device say where the fresh token lies, so
// row r sees keys 0 .. positions[r], of these the last `window` with a window (> 0). With `softcap`
// c > 0 scores are c tanh(scores / c). Returns [R, H, D]; fp32 inside. What is launched depends on
// shapes alone, so that a CUDA graph of it holds for any positions. No gradients.
at::Tensor decode_attention(const at::Tensor& q_RHD, const at::Tensor& k_RCKD,
                            const at::Tensor& v_RCKD, const at::Tensor& positions_R, double scale,
                            int64_t window = 0, double softcap = 0);

}  // namespace mgm::ops
