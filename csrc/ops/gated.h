// The gated product of an MLP (SwiGLU, GeGLU; HF LlamaMLP, GemmaMLP) without what lies between.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/gated.h"

namespace mgm::ops {

using kernels::GateKind;

// act(gate) * up, [T, I] of any floating dtype; rows may lie apart. Kept for the gradient are gate
// and up alone: act(gate) is made again. On a GPU float32 and bfloat16 take one kernel each way.
at::Tensor gated(const at::Tensor& gate_TI, const at::Tensor& up_TI, GateKind kind);

}  // namespace mgm::ops
