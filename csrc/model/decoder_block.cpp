#include "model/decoder_block.h"

#include <ATen/ATen.h>

namespace mgm {

DecoderBlock::DecoderBlock(const std::string& prefix, const LlmConfig& c, int64_t layer)
    : Module(prefix, prefix),
      heads_(c.num_heads),
      kv_heads_(c.num_kv_heads),
      head_dim_(head_width(c)),
      window_(layer_window(c, layer)),
      wants_load_(c.router_aux_loss > 0) {
  const LlmTraits& traits = llm_traits(c.arch);
  const bool qkv_bias = c.attention_bias || traits.qkv_bias;
  const auto linear = [&](const char* name, int64_t in, int64_t out, bool bias) {
    return &add<Linear>(child_name(name), group(), in, out, bias, linear_inits(c, in));
  };
  const auto norm = [&](const char* name, int64_t width) {
    return &add<RmsNorm>(child_name(name), group(), width, c.norm_eps, traits.unit_norm);
  };
  const int64_t q_width = heads_ * head_dim_, kv_width = kv_heads_ * head_dim_;
  if (traits.fused_projections) {
    qkv_ = linear("self_attn.qkv_proj", c.hidden_size, q_width + 2 * kv_width, qkv_bias);
  } else {
    q_ = linear("self_attn.q_proj", c.hidden_size, q_width, qkv_bias);
    k_ = linear("self_attn.k_proj", c.hidden_size, kv_width, qkv_bias);
    v_ = linear("self_attn.v_proj", c.hidden_size, kv_width, qkv_bias);
  }
  o_ = linear("self_attn.o_proj", q_width, c.hidden_size, c.attention_bias);
  if (traits.qk_norm) {
    q_norm_ = norm("self_attn.q_norm", head_dim_);
    k_norm_ = norm("self_attn.k_norm", head_dim_);
  }
  if (traits.experts) {
    experts_ = &add<ExpertMlps>(child_name("block_sparse_moe"), group(), c);
  } else {
    mlp_ = &add<GatedMlp>(child_name("mlp"), group(), c,
                          GatedMlp::Names{"gate_proj", "up_proj", "down_proj"});
  }
  norm1_ = norm("input_layernorm", c.hidden_size);
  if (traits.post_norms) {
    post_attention_ = norm("post_attention_layernorm", c.hidden_size);
    norm2_ = norm("pre_feedforward_layernorm", c.hidden_size);
    post_mlp_ = norm("post_feedforward_layernorm", c.hidden_size);
  } else {
    norm2_ = norm("post_attention_layernorm", c.hidden_size);
  }
}

void DecoderBlock::list_linears(std::vector<Linear*>& out) const {
  for (Linear* linear : {q_, k_, v_, qkv_, o_}) {
    if (linear) out.push_back(linear);
  }
  if (experts_) {
    experts_->list_linears(out);
  } else {
    mlp_->list_linears(out);
  }
}

DecoderBlock::Heads DecoderBlock::project(const at::Tensor& h_TH, const RowDraws& draws) const {
  const auto heads = [&](const at::Tensor& x) { return x.unflatten(-1, {-1, head_dim_}); };
  if (!qkv_) {
    return {heads((*q_)(h_TH, draws)), heads((*k_)(h_TH, draws)), heads((*v_)(h_TH, draws))};
  }
  const auto parts =
      heads((*qkv_)(h_TH, draws)).split_with_sizes({heads_, kv_heads_, kv_heads_}, 1);
  return {parts[0], parts[1], parts[2]};
}

Tensors DecoderBlock::forward(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                              const RowDraws& draws) const {
  Heads heads = project((*norm1_)(x_TH), draws);
  if (q_norm_) {
    heads.q = (*q_norm_)(heads.q);
    heads.k = (*k_norm_)(heads.k);
  }
  const at::Tensor attended =
      attend(rotate(heads.q, rotary), rotate(heads.k, rotary), heads.v).flatten(1);
  const at::Tensor a = (*o_)(attended, draws);
  const at::Tensor x = x_TH + (post_attention_ ? (*post_attention_)(a) : a);
  const at::Tensor h = (*norm2_)(x);
  if (experts_) {
    const ExpertMlps::Output out = (*experts_)(h, draws);
    if (wants_load_) return {x + out.y_TH, out.load_2E};
    return {x + out.y_TH};
  }
  const at::Tensor m = (*mlp_)(h, draws);
  return {x + (post_mlp_ ? (*post_mlp_)(m) : m)};
}

}  // namespace mgm
