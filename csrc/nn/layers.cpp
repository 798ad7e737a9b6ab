#include "nn/layers.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"
#include "base/rng.h"
#include "ops/depthwise.h"
#include "ops/packed_weight.h"

namespace mgm {

Init constant_init(double value) { return {InitKind::kConstant, value}; }
Init normal_init(double std) { return {InitKind::kNormal, std}; }
Init uniform_init(double bound) { return {InitKind::kUniform, bound}; }
Init torch_linear_init(int64_t fan_in) {
  return uniform_init(1.0 / std::sqrt(static_cast<double>(fan_in)));
}

Linear::Linear(const std::string& prefix, const std::string& group, int64_t in, int64_t out,
               bool bias, Inits inits)
    : Module(prefix, group), weight_(declare("weight", {out, in}, inits.weight, true)) {
  if (bias) bias_ = &declare("bias", {out}, inits.bias, false);
}

RowDraws RowDraws::select(const at::Tensor& rows) const {
  if (!active()) return {};
  return {{counters.sample.index_select(0, rows), counters.position.index_select(0, rows)}, key};
}

RowDraws RowDraws::narrow(int64_t begin, int64_t count) const {
  if (!active()) return {};
  return {{counters.sample.narrow(0, begin, count), counters.position.narrow(0, begin, count)},
          key};
}

void Linear::adapt(const Lora& lora) {
  MGM_CHECK(!lora_ && lora.rank > 0, prefix(), ": adapter of rank ", lora.rank);
  const int64_t out = weight_.spec.shape[0], in = weight_.spec.shape[1];
  lora_ = lora;
  // Kaiming-uniform with a = sqrt(5), as PEFT draws it, is what torch.nn.Linear has.
  lora_a_ = &declare("lora_A.weight", {lora.rank, in}, torch_linear_init(in), true);
  lora_b_ = &declare("lora_B.weight", {out, lora.rank}, constant_init(0), true);
}

at::Tensor Linear::base(const at::Tensor& x) const {
  if (!weight_.packed.defined()) {
    return at::linear(x, weight_.value, bias_ ? bias_->value : at::Tensor());
  }
  const at::Tensor y = ops::packed_linear(x, weight_.packed);
  return bias_ ? y + bias_->value : y;
}

at::Tensor Linear::operator()(const at::Tensor& x, const RowDraws& draws) const {
  const at::Tensor y = base(x);
  if (!lora_) return y;
  const bool drops = draws.active() && lora_->dropout > 0;
  const at::Tensor dropped =
      drops ? ops::dropout_rows(x, draws.counters, rng_key(draws.key, prefix()), lora_->dropout)
            : x;
  return at::add(y, at::linear(at::linear(dropped, lora_a_->value), lora_b_->value), lora_->scale);
}

LayerNorm::LayerNorm(const std::string& prefix, const std::string& group, int64_t width, double eps)
    : Module(prefix, group),
      width_(width),
      eps_(eps),
      weight_(declare("weight", {width}, constant_init(1), false)),
      bias_(declare("bias", {width}, constant_init(0), false)) {}

at::Tensor LayerNorm::operator()(const at::Tensor& x) const {
  return at::layer_norm(x, {width_}, weight_.value, bias_.value, eps_);
}

RmsNorm::RmsNorm(const std::string& prefix, const std::string& group, int64_t width, double eps,
                 bool unit)
    : Module(prefix, group),
      width_(width),
      eps_(eps),
      unit_(unit),
      weight_(declare("weight", {width}, constant_init(unit ? 0 : 1), false)) {}

at::Tensor RmsNorm::operator()(const at::Tensor& x) const {
  if (!unit_) return at::rms_norm(x, {width_}, weight_.value, eps_);
  const auto wide = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::rms_norm(x.to(wide), {width_}, weight_.value.to(wide) + 1, eps_).to(x.scalar_type());
}

Embedding::Embedding(const std::string& prefix, const std::string& group, int64_t rows,
                     int64_t width, Init init)
    : Module(prefix, group), weight_(declare("weight", {rows, width}, init, true)) {}

at::Tensor Embedding::operator()(const at::Tensor& ids) const {
  return at::embedding(weight_.value, ids);
}

Conv2d::Conv2d(const std::string& prefix, const std::string& group, Shape shape, Init init)
    : Module(prefix, group),
      shape_(shape),
      weight_(declare("weight", {shape.out, shape.in / shape.groups, shape.kernel, shape.kernel},
                      init, true)) {
  if (shape.bias) bias_ = &declare("bias", {shape.out}, constant_init(0), false);
}

at::Tensor Conv2d::operator()(const at::Tensor& x_NHWC) const {
  const auto bias = bias_ ? std::optional(bias_->value) : std::nullopt;
  if (shape_.stride == 1 && shape_.padding == 3 && ops::has_depthwise(x_NHWC, weight_.value)) {
    return ops::depthwise(x_NHWC, weight_.value, bias);
  }
  // The NCHW view of an NHWC tensor is channels_last, which cuDNN and oneDNN take as it is.
  const at::Tensor y =
      at::conv2d(x_NHWC.permute({0, 3, 1, 2}), weight_.value, bias, shape_.stride, shape_.padding,
                 /*dilation=*/1, shape_.groups);
  return y.permute({0, 2, 3, 1}).contiguous();
}

}  // namespace mgm
