// What the fused operations do, in operations one by one under autograd.
#pragma once

#include <ATen/ATen.h>

#include "ops/gated.h"

namespace mgm {

// HF apply_rotary_pos_emb on the first numbers of a head. x [T, A, D], cos and sin [T, 1, R].
inline at::Tensor rotate_in_steps(const at::Tensor& x, const at::Tensor& cos,
                                  const at::Tensor& sin) {
  const int64_t rotated = cos.size(-1);
  const at::Tensor turned = x.slice(-1, 0, rotated), rest = x.slice(-1, rotated);
  const at::Tensor first = turned.slice(-1, 0, rotated / 2), second = turned.slice(-1, rotated / 2);
  return at::cat({turned * cos + at::cat({-second, first}, -1) * sin, rest}, -1);
}

inline at::Tensor gated_in_steps(const at::Tensor& gate, const at::Tensor& up, ops::GateKind kind) {
  if (kind == ops::GateKind::kSilu) return at::silu(gate) * up;
  return at::gelu(gate, kind == ops::GateKind::kGelu ? "none" : "tanh") * up;
}

inline constexpr ops::GateKind kGateKinds[] = {ops::GateKind::kSilu, ops::GateKind::kGelu,
                                               ops::GateKind::kGeluTanh};

}  // namespace mgm
