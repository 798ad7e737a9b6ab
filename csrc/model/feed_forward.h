// The MLP half of a decoder block: gated (HF LlamaMLP, GemmaMLP, Phi3MLP), or a mixture of gated
// experts (HF MixtralSparseMoeBlock). Shape suffixes: T rows, H width, I MLP width, E experts, k
// experts a token visits.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"
#include "nn/layers.h"
#include "ops/grouped_linear.h"

namespace mgm {

// Initialisation of a matrix of the language model.
Init matrix_init(const LlmConfig& config, int64_t fan_in);

Linear::Inits linear_inits(const LlmConfig& config, int64_t fan_in);  // biases start at 0

// down(act(gate(x)) * up(x)).
class GatedMlp : public Module {
 public:
  struct Names {
    const char *gate, *up, *down;
  };
  // Where the architecture fuses them, gate and up are one matrix gate_up_proj, gate first.
  GatedMlp(const std::string& prefix, const std::string& group, const LlmConfig& config,
           const Names& names);
  at::Tensor operator()(const at::Tensor& x_TH, const RowDraws& draws) const;
  void list_linears(std::vector<Linear*>& out) const;
  // gate, up and down; only where they are three matrices and no more: not fused, no bias, no
  // adapter, not packed. Else empty.
  std::vector<at::Tensor> plain_weights() const;
  Activation activation() const { return activation_; }

 private:
  Activation activation_;
  Linear *gate_ = nullptr, *up_ = nullptr;
  Linear* gate_up_ = nullptr;
  Linear* down_;
};

// Every token visits the k experts its router finds likeliest; their results are weighted by the
// router's probabilities, renormalised to 1. Experts nobody visits get zero gradients.
class ExpertMlps : public Module {
 public:
  // The experts' parameters are in `experts_group`, the router's in `group`.
  ExpertMlps(const std::string& prefix, const std::string& group, const std::string& experts_group,
             const LlmConfig& config);

  struct Output {
    at::Tensor y_TH;
    // fp32 [2, E]: the router's probabilities summed over rows, and the visits (no gradient).
    at::Tensor load_2E;
  };
  Output operator()(const at::Tensor& x_TH, const RowDraws& draws) const;

  // Its parts, for experts that do not all lie here. R = T k visits, sorted by expert.
  struct Routed {
    at::Tensor rows_RH;    // x of each visit
    at::Tensor visitor_R;  // its row of x
    at::Tensor back_R;     // place of visit t k + i among the sorted
    at::Tensor weight_Tk;  // of its result
    at::Tensor visits_E;   // int64
    at::Tensor load_2E;
  };
  Routed route(const at::Tensor& x_TH) const;
  // gate, up and down of experts [first, first + n), each matrix of all of them as one. Empty where
  // an expert is more than that (adapters, packed weights) or they do not lie together.
  using Stacks = std::vector<ops::StackedWeights>;
  Stacks stacks(int64_t first, int64_t n) const;
  // The same for one grouped product over these rows: empty too where its kernel does not take them
  // (ops/grouped_linear.h; it wants bf16 on a GPU).
  Stacks grouped(const at::Tensor& rows_RH, int64_t first, int64_t n) const;
  // Whether all its experts are one product on their GPU, and so without the host knowing of
  // visits.
  bool is_grouped() const;
  // Results of experts [first, first + n) for rows sorted by expert; visits int64 [n], on the rows'
  // device or the host. With `stacks` all experts are one product; without, they run one after
  // another, for which the host waits for visits that are on a GPU.
  at::Tensor compute(const at::Tensor& rows_RH, const RowDraws& draws, int64_t first,
                     const at::Tensor& visits_n, const Stacks& stacks) const;
  at::Tensor combine(const at::Tensor& results_RH, const at::Tensor& back_R,
                     const at::Tensor& weight_Tk) const;

  void list_linears(std::vector<Linear*>& out) const;  // the experts' own, not the router
  // Tells the experts' parameters which of them they belong to; when all are declared.
  void number_experts();
  int64_t count() const { return static_cast<int64_t>(experts_.size()); }
  const std::string& experts_group() const { return experts_.front()->group(); }

 private:
  int64_t visits_;  // k
  Linear* gate_;
  std::vector<GatedMlp*> experts_;
};

}  // namespace mgm
