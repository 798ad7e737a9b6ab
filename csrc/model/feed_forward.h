// The MLP half of a decoder block: gated (HF LlamaMLP, GemmaMLP, Phi3MLP), or a mixture of gated
// experts (HF MixtralSparseMoeBlock). Shape suffixes: T rows, H width, I MLP width, E experts, k
// experts a token visits.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"
#include "nn/layers.h"

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

 private:
  Activation activation_;
  Linear *gate_ = nullptr, *up_ = nullptr;
  Linear* gate_up_ = nullptr;
  Linear* down_;
};

// Every token visits the k experts its router finds likeliest; their results are weighted by the
// router's probabilities, renormalised to 1. Experts nobody visits get zero gradients. On a GPU the
// host waits once per call, for the number of visits of each expert.
class ExpertMlps : public Module {
 public:
  ExpertMlps(const std::string& prefix, const std::string& group, const LlmConfig& config);

  struct Output {
    at::Tensor y_TH;
    // fp32 [2, E]: the router's probabilities summed over rows, and the visits (no gradient).
    at::Tensor load_2E;
  };
  Output operator()(const at::Tensor& x_TH, const RowDraws& draws) const;
  void list_linears(std::vector<Linear*>& out) const;  // the experts' own, not the router

 private:
  int64_t visits_;  // k
  Linear* gate_;
  std::vector<GatedMlp*> experts_;
};

}  // namespace mgm
