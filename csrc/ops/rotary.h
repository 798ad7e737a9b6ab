// Rotary position embedding of query and key heads (HF apply_rotary_pos_emb, rotate-half form).
#pragma once

#include <ATen/core/Tensor.h>

namespace mgm::ops {

struct RotatedHeads {
  at::Tensor q, k;
};

// q [T, A, D], k [T, K, D] with the first R numbers of a head rotated; cos and sin [T, 1, R] in
// their dtype, any floating one. On a GPU float32 and bfloat16 take one kernel for both, with the
// bits of the operations one by one; nothing but cos and sin is kept for the gradient.
RotatedHeads rotate_heads(const at::Tensor& q_TAD, const at::Tensor& k_TKD,
                          const at::Tensor& cos_T1R, const at::Tensor& sin_T1R);

}  // namespace mgm::ops
