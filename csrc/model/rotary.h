// Rotary position embedding, rotate-half form (HF LlamaRotaryEmbedding), with the frequency rules
// of HF modeling_rope_utils: default, linear, llama3 and longrope's short factors. Angles are fp32
// (fp64 in float64) and cast last. Shape suffixes: T rows, A heads, D head width, R rotated width.
#pragma once

#include <ATen/core/Tensor.h>

#include "config/run_config.h"

namespace mgm {

struct Rotary {
  at::Tensor cos, sin;  // [T, 1, R]
};

// int64 positions [T]; the result has `dtype` and the positions' device.
Rotary make_rotary(const LlmConfig& config, const at::Tensor& positions_T, at::ScalarType dtype);

}  // namespace mgm
