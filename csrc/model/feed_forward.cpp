#include "model/feed_forward.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "config/llm_arch.h"
#include "ops/gated.h"
#include "types/upload.h"

namespace mgm {
namespace {

at::Tensor gated(Activation activation, const at::Tensor& gate, const at::Tensor& up) {
  const auto kind = activation == Activation::kSilu   ? ops::GateKind::kSilu
                    : activation == Activation::kGelu ? ops::GateKind::kGelu
                                                      : ops::GateKind::kGeluTanh;
  return ops::gated(gate, up, kind);
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
    return (*down_)(gated(activation_, halves[0], halves[1]), draws);
  }
  return (*down_)(gated(activation_, (*gate_)(x_TH, draws), (*up_)(x_TH, draws)), draws);
}

void GatedMlp::list_linears(std::vector<Linear*>& out) const {
  for (Linear* linear : {gate_, up_, gate_up_, down_}) {
    if (linear) out.push_back(linear);
  }
}

std::vector<at::Tensor> GatedMlp::plain_weights() const {
  if (gate_up_) return {};
  std::vector<at::Tensor> out;
  for (const Linear* linear : {gate_, up_, down_}) {
    if (!linear->plain()) return {};
    out.push_back(linear->weight().value);
  }
  return out;
}

ExpertMlps::ExpertMlps(const std::string& prefix, const std::string& group,
                       const std::string& experts_group, const LlmConfig& c)
    : Module(prefix, group), visits_(c.experts_per_token) {
  gate_ = &add<Linear>(child_name("gate"), group, c.hidden_size, c.num_experts, false,
                       linear_inits(c, c.hidden_size));
  for (int64_t e = 0; e < c.num_experts; ++e) {
    experts_.push_back(&add<GatedMlp>(child_name(cat("experts.", e)), experts_group, c,
                                      GatedMlp::Names{"w1", "w3", "w2"}));
  }
}

void ExpertMlps::list_linears(std::vector<Linear*>& out) const {
  for (const GatedMlp* expert : experts_) expert->list_linears(out);
}

void ExpertMlps::number_experts() {
  for (size_t e = 0; e < experts_.size(); ++e) {
    for (Param* param : experts_[e]->params()) param->spec.expert = static_cast<int64_t>(e);
  }
}

ExpertMlps::Routed ExpertMlps::route(const at::Tensor& x_TH) const {
  const at::Tensor logits_TE = (*gate_)(x_TH);
  const auto wide = x_TH.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor probabilities_TE = at::softmax(logits_TE, -1, wide);
  const auto [top_Tk, expert_Tk] = probabilities_TE.topk(visits_, -1);
  Routed out;
  out.weight_Tk = (top_Tk / top_Tk.sum(-1, /*keepdim=*/true)).to(x_TH.scalar_type());
  const at::Tensor visits = expert_Tk.flatten();
  const at::Tensor order = at::argsort(visits, /*stable=*/true);
  out.back_R = at::empty_like(order).scatter_(0, order, at::arange(order.size(0), order.options()));
  // Not bincount: the host would wait for the largest.
  out.visits_E = (visits.unsqueeze(-1) == at::arange(count(), visits.options())).sum(0);
  out.visitor_R = at::floor_divide(order, at::Scalar(visits_));
  out.rows_RH = x_TH.index_select(0, out.visitor_R);
  out.load_2E = at::stack({probabilities_TE.sum(0), out.visits_E.to(wide)});
  return out;
}

ExpertMlps::Stacks ExpertMlps::stacks(int64_t first, int64_t n) const {
  std::vector<std::vector<at::Tensor>> matrices(3);  // [gate, up, down][expert]
  for (int64_t e = first; e < first + n; ++e) {
    const std::vector<at::Tensor> weights = experts_[static_cast<size_t>(e)]->plain_weights();
    if (weights.empty()) return {};
    for (size_t i = 0; i < weights.size(); ++i) matrices[i].push_back(weights[i]);
  }
  Stacks out;
  for (std::vector<at::Tensor>& matrix : matrices) {
    out.push_back(ops::stack_weights(std::move(matrix)));
    if (!out.back().view.defined()) return {};
  }
  return out;
}

ExpertMlps::Stacks ExpertMlps::grouped(const at::Tensor& rows_RH, int64_t first, int64_t n) const {
  if (!rows_RH.is_cuda()) return {};
  Stacks out = stacks(first, n);
  for (const ops::StackedWeights& matrix : out) {
    if (!ops::has_grouped_kernel(rows_RH, matrix)) return {};
  }
  return out;
}

bool ExpertMlps::is_grouped() const {
  const Stacks all = stacks(0, count());
  return !all.empty() && std::all_of(all.begin(), all.end(), [](const ops::StackedWeights& m) {
    return ops::has_grouped_kernel(m.view[0], m);  // rows are as wide as its rows
  });
}

at::Tensor ExpertMlps::compute(const at::Tensor& rows_RH, const RowDraws& draws, int64_t first,
                               const at::Tensor& visits_n, const Stacks& stacks) const {
  if (!stacks.empty()) {
    const at::Tensor ends = upload(visits_n.cumsum(0).to(at::kInt), rows_RH.device());
    const auto product = [&](const at::Tensor& x, size_t matrix) {
      return ops::grouped_linear(x, stacks[matrix], ends);
    };
    const Activation activation = experts_.front()->activation();
    return product(gated(activation, product(rows_RH, 0), product(rows_RH, 1)), 2);
  }
  const at::Tensor counts = visits_n.cpu();
  std::vector<at::Tensor> results;
  int64_t begin = 0;
  for (int64_t i = 0; i < counts.size(0); ++i) {
    const int64_t rows = counts.const_data_ptr<int64_t>()[i];
    // Run without visitors too: its weights then have gradients, which are zero.
    results.push_back((*experts_[static_cast<size_t>(first + i)])(rows_RH.narrow(0, begin, rows),
                                                                  draws.narrow(begin, rows)));
    begin += rows;
  }
  return at::cat(results);
}

at::Tensor ExpertMlps::combine(const at::Tensor& results_RH, const at::Tensor& back_R,
                               const at::Tensor& weight_Tk) const {
  const at::Tensor visited_TkH =
      results_RH.index_select(0, back_R).view({weight_Tk.size(0), visits_, results_RH.size(1)});
  return (visited_TkH * weight_Tk.unsqueeze(-1)).sum(1);
}

ExpertMlps::Output ExpertMlps::operator()(const at::Tensor& x_TH, const RowDraws& draws) const {
  const Routed r = route(x_TH);
  const at::Tensor results =
      compute(r.rows_RH, draws.select(r.visitor_R), 0, r.visits_E, grouped(r.rows_RH, 0, count()));
  return {combine(results, r.back_R, r.weight_Tk), r.load_2E};
}

}  // namespace mgm
