// One decoder block: x + attention(norm(x)), then x + MLP(norm(x)); with the biases, head norms,
// norms behind each half and fused projections of its architecture (config/llm_arch.h). Parameters
// have their Hugging Face names. Shape suffixes: T rows, H width, A query heads, K key heads, D
// head width.
#pragma once

#include <functional>
#include <string>

#include "config/llm_arch.h"
#include "model/feed_forward.h"
#include "model/rotary.h"
#include "nn/block_runner.h"
#include "nn/expert_dispatch.h"

namespace mgm {

class DecoderBlock : public Module {
 public:
  // `experts_apart`: its experts have a group of their own and are reached through
  // ForwardContext::experts, because they do not all lie here.
  DecoderBlock(const std::string& prefix, const LlmConfig& config, int64_t layer,
               bool experts_apart);

  // Rotated q [T, A, D] and k, and v [T, K, D] -> [T, A, D].
  using Attend =
      std::function<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)>;

  // {[T, H]}, and with a router loss the experts' load fp32 [2, E] (ExpertMlps::Output). `draws`:
  // of the rows, for the dropout of adapters.
  Tensors run(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
              const RowDraws& draws, const ForwardContext& ctx) const;

  // Its linears without the router, in order.
  void list_linears(std::vector<Linear*>& out) const;

  int64_t window() const { return window_; }  // 0: none
  // Of its experts where they lie apart; else null.
  const std::string* experts_group() const {
    return experts_apart_ ? &experts_->experts_group() : nullptr;
  }
  // Whether the host has to know which experts were visited. Asks the weights, so they are there.
  bool waits_for_visits() const { return experts_ && !experts_->is_grouped(); }
  // When all parameters are declared.
  void number_experts() {
    if (experts_) experts_->number_experts();
  }

 private:
  struct Heads {
    at::Tensor q, k, v;
  };
  Heads project(const at::Tensor& h_TH, const RowDraws& draws) const;
  // x + attention(norm(x)).
  at::Tensor attention_half(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                            const RowDraws& draws) const;
  Tensors whole(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                const RowDraws& draws) const;
  Tensors run_apart(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                    const RowDraws& draws, const ForwardContext& ctx) const;
  at::Tensor compute_arrived(const at::Tensor& rows, const RowDraws& draws,
                             const std::vector<std::vector<int64_t>>& counts,
                             ExpertDispatch& dispatch) const;

  int64_t heads_, kv_heads_, head_dim_, window_;
  bool wants_load_, experts_apart_ = false;
  Linear *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *qkv_ = nullptr, *o_ = nullptr;
  RmsNorm *q_norm_ = nullptr, *k_norm_ = nullptr;
  RmsNorm *norm1_, *norm2_;
  RmsNorm *post_attention_ = nullptr, *post_mlp_ = nullptr;
  GatedMlp* mlp_ = nullptr;
  ExpertMlps* experts_ = nullptr;
};

}  // namespace mgm
