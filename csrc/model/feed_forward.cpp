#include "model/feed_forward.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"
#include "config/llm_arch.h"

namespace mgm {
namespace {

at::Tensor activate(Activation activation, const at::Tensor& x) {
  if (activation == Activation::kSilu) return at::silu(x);
  return at::gelu(x, activation == Activation::kGelu ? "none" : "tanh");
}

}  // namespace

Init matrix_init(const LlmConfig& c, int64_t fan_in) {
  return normal_init(c.init_std > 0 ? c.init_std : std::pow(double(fan_in), -0.5));
}

Linear::Inits linear_inits(const LlmConfig& c, int64_t fan_in) {
  return {matrix_init(c, fan_in), constant_init(0)};
}

GatedMlp::GatedMlp(const std::string& prefix, const std::string& group, const LlmConfig& c,
                   const Names& names)
    : Module(prefix, group), activation_(c.activation) {
  const auto linear = [&](const char* name, int64_t in, int64_t out) {
    return &add<Linear>(child_name(name), group, in, out, c.mlp_bias, linear_inits(c, in));
  };
  if (llm_traits(c.arch).fused_projections) {
    gate_up_ = linear("gate_up_proj", c.hidden_size, 2 * c.intermediate_size);
  } else {
    gate_ = linear(names.gate, c.hidden_size, c.intermediate_size);
    up_ = linear(names.up, c.hidden_size, c.intermediate_size);
  }
  down_ = linear(names.down, c.intermediate_size, c.hidden_size);
}

at::Tensor GatedMlp::operator()(const at::Tensor& x_TH, const RowDraws& draws) const {
  if (gate_up_) {
    const auto halves = (*gate_up_)(x_TH, draws).chunk(2, -1);
    return (*down_)(activate(activation_, halves[0]) * halves[1], draws);
  }
  return (*down_)(activate(activation_, (*gate_)(x_TH, draws)) * (*up_)(x_TH, draws), draws);
}

void GatedMlp::list_linears(std::vector<Linear*>& out) const {
  for (Linear* linear : {gate_, up_, gate_up_, down_}) {
    if (linear) out.push_back(linear);
  }
}

ExpertMlps::ExpertMlps(const std::string& prefix, const std::string& group, const LlmConfig& c)
    : Module(prefix, group), visits_(c.experts_per_token) {
  gate_ = &add<Linear>(child_name("gate"), group, c.hidden_size, c.num_experts, false,
                       linear_inits(c, c.hidden_size));
  for (int64_t e = 0; e < c.num_experts; ++e) {
    experts_.push_back(&add<GatedMlp>(child_name(cat("experts.", e)), group, c,
                                      GatedMlp::Names{"w1", "w3", "w2"}));
  }
}

void ExpertMlps::list_linears(std::vector<Linear*>& out) const {
  for (const GatedMlp* expert : experts_) expert->list_linears(out);
}

ExpertMlps::Output ExpertMlps::operator()(const at::Tensor& x_TH, const RowDraws& draws) const {
  const auto experts = static_cast<int64_t>(experts_.size());
  const at::Tensor logits_TE = (*gate_)(x_TH);
  const auto wide = x_TH.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor probabilities_TE = at::softmax(logits_TE, -1, wide);
  const auto [top_Tk, expert_Tk] = probabilities_TE.topk(visits_, -1);
  const at::Tensor weight_Tk = (top_Tk / top_Tk.sum(-1, /*keepdim=*/true)).to(x_TH.scalar_type());

  // Visits sorted by expert; `back` leads from a visit to its place in that order.
  const at::Tensor visits = expert_Tk.flatten();
  const at::Tensor order = at::argsort(visits, /*stable=*/true);
  const at::Tensor back =
      at::empty_like(order).scatter_(0, order, at::arange(order.size(0), order.options()));
  const at::Tensor visits_E = at::bincount(visits, /*weights=*/{}, experts);
  const at::Tensor counts = visits_E.cpu();
  const at::Tensor visitor = at::floor_divide(order, at::Scalar(visits_));
  const at::Tensor rows = x_TH.index_select(0, visitor);
  const RowDraws row_draws = draws.select(visitor);
  std::vector<at::Tensor> results;
  int64_t begin = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t count = counts.const_data_ptr<int64_t>()[e];
    // Run without visitors too: its weights then have gradients, which are zero.
    results.push_back((*experts_[static_cast<size_t>(e)])(rows.narrow(0, begin, count),
                                                          row_draws.narrow(begin, count)));
    begin += count;
  }
  const at::Tensor visited_TkH =
      at::cat(results).index_select(0, back).view({x_TH.size(0), visits_, x_TH.size(1)});
  return {(visited_TkH * weight_Tk.unsqueeze(-1)).sum(1),
          at::stack({probabilities_TE.sum(0), visits_E.to(wide)})};
}

}  // namespace mgm
