#include "model/rotary.h"

#include <ATen/ATen.h>

#include <cmath>

#include "config/llm_arch.h"
#include "types/upload.h"

namespace mgm {
namespace {

// Llama 3.1: waves longer than the first training are stretched by the factor, short ones are left
// alone, those between are blended.
at::Tensor llama3_frequencies(const at::Tensor& f, const RopeScalingConfig& rope) {
  const double length = double(rope.original_max_positions);
  const double low = rope.low_freq_factor, high = rope.high_freq_factor;
  const at::Tensor waves = f.reciprocal() * (2 * M_PI);
  const at::Tensor smooth = ((waves.reciprocal() * length - low) / (high - low)).clamp(0, 1);
  return (1 - smooth) * f / rope.factor + smooth * f;
}

at::Tensor frequencies(const LlmConfig& c, const at::TensorOptions& options) {
  const RopeScalingConfig& rope = c.rope_scaling;
  const auto rotated = static_cast<int64_t>(double(head_width(c)) * c.rotary_fraction);
  const at::Tensor exponent = at::arange(0, rotated, 2, options) / double(rotated);
  const at::Tensor period = at::pow(c.rope_theta, exponent);
  switch (rope.type) {
    case RopeType::kLinear:
      return period.reciprocal() / rope.factor;
    case RopeType::kLlama3:
      return llama3_frequencies(period.reciprocal(), rope);
    case RopeType::kLongrope:
      return (upload(at::tensor(rope.short_factor, options.device(at::kCPU)), options.device()) *
              period)
          .reciprocal();
    case RopeType::kDefault:
      break;
  }
  return period.reciprocal();
}

// What longrope multiplies cos and sin by.
double rotated_scale(const RopeScalingConfig& rope) {
  if (rope.type != RopeType::kLongrope) return 1;
  if (rope.attention_factor > 0) return rope.attention_factor;
  return std::sqrt(1 + std::log(rope.factor) / std::log(double(rope.original_max_positions)));
}

}  // namespace

Rotary make_rotary(const LlmConfig& config, const at::Tensor& positions_T, at::ScalarType dtype) {
  const auto wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor f = frequencies(config, positions_T.options().dtype(wide));
  const at::Tensor angle = at::outer(positions_T.to(wide), f);
  const at::Tensor both = at::cat({angle, angle}, -1).unsqueeze(1);
  const double scale = rotated_scale(config.rope_scaling);
  if (scale == 1) return {both.cos().to(dtype), both.sin().to(dtype)};
  return {(both.cos() * scale).to(dtype), (both.sin() * scale).to(dtype)};
}

}  // namespace mgm
