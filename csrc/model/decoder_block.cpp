#include "model/decoder_block.h"

#include <ATen/ATen.h>

#include <numeric>

#include "base/error.h"
#include "ops/rotary.h"
#include "types/expert_group.h"

namespace mgm {
namespace {

// What the run of a block hands on where its experts lie apart; runs return lists.
struct Halfway {
  Halfway(const at::Tensor& x, const ExpertMlps::Routed& r) : x_TH(x), routed(r) {}
  explicit Halfway(const Tensors& packed)
      : x_TH(packed[0]), routed{packed[1], packed[2], packed[3], packed[4], packed[5], packed[6]} {}
  Tensors pack() const {
    const auto& [rows, visitor, back, weight, visits, load] = routed;
    return {x_TH, rows, visitor, back, weight, visits, load};
  }

  at::Tensor x_TH;
  ExpertMlps::Routed routed;
};

}  // namespace

DecoderBlock::DecoderBlock(const std::string& prefix, const LlmConfig& c, int64_t layer,
                           bool experts_apart)
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
    experts_apart_ = experts_apart;
    experts_ = &add<ExpertMlps>(child_name("block_sparse_moe"), group(),
                                experts_apart ? mgm::experts_group(group()) : group(), c);
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

at::Tensor DecoderBlock::attention_half(const at::Tensor& x_TH, const Rotary& rotary,
                                        const Attend& attend, const RowDraws& draws) const {
  Heads heads = project((*norm1_)(x_TH), draws);
  if (q_norm_) {
    heads.q = (*q_norm_)(heads.q);
    heads.k = (*k_norm_)(heads.k);
  }
  const ops::RotatedHeads rotated = ops::rotate_heads(heads.q, heads.k, rotary.cos, rotary.sin);
  const at::Tensor attended = attend(rotated.q, rotated.k, heads.v).flatten(1);
  const at::Tensor a = (*o_)(attended, draws);
  return x_TH + (post_attention_ ? (*post_attention_)(a) : a);
}

Tensors DecoderBlock::whole(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                            const RowDraws& draws) const {
  const at::Tensor x = attention_half(x_TH, rotary, attend, draws);
  const at::Tensor h = (*norm2_)(x);
  if (experts_) {
    const ExpertMlps::Output out = (*experts_)(h, draws);
    if (wants_load_) return {x + out.y_TH, out.load_2E};
    return {x + out.y_TH};
  }
  const at::Tensor m = (*mlp_)(h, draws);
  return {x + (post_mlp_ ? (*post_mlp_)(m) : m)};
}

Tensors DecoderBlock::run(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                          const RowDraws& draws, const ForwardContext& ctx) const {
  if (experts_apart_) return run_apart(x_TH, rotary, attend, draws, ctx);
  return ctx.runner.run(group(), {x_TH}, [=, this](const Tensors& in) {
    return whole(in[0], rotary, attend, draws);
  });
}

// Lane by lane, each as if it were alone.
at::Tensor DecoderBlock::compute_arrived(const at::Tensor& rows, const RowDraws& draws,
                                         const std::vector<std::vector<int64_t>>& counts,
                                         ExpertDispatch& dispatch) const {
  const int64_t first = dispatch.share().first;
  std::vector<at::Tensor> results;
  int64_t begin = 0;
  for (size_t lane = 0; lane < counts.size(); ++lane) {
    dispatch.enter_lane(experts_->experts_group(), static_cast<int64_t>(lane));
    const std::vector<int64_t>& visits = counts[lane];
    const int64_t n = std::accumulate(visits.begin(), visits.end(), int64_t{0});
    const at::Tensor part = rows.narrow(0, begin, n);
    results.push_back(
        experts_->compute(part, draws.narrow(begin, n), first, at::tensor(visits, at::kLong),
                          experts_->grouped(part, first, static_cast<int64_t>(visits.size()))));
    begin += n;
  }
  return results.size() == 1 ? results[0] : at::cat(results);
}

// Two runs, of the block and of the experts, with the ways of the rows between them: what
// recomputes a run sends nothing again.
Tensors DecoderBlock::run_apart(const at::Tensor& x_TH, const Rotary& rotary, const Attend& attend,
                                const RowDraws& draws, const ForwardContext& ctx) const {
  MGM_CHECK(ctx.experts, "the experts of ", group(), " lie apart, and nothing leads to them");
  ExpertDispatch& dispatch = *ctx.experts;
  const Halfway half(ctx.runner.run(group(), {x_TH}, [=, this](const Tensors& in) {
    const at::Tensor x = attention_half(in[0], rotary, attend, draws);
    return Halfway(x, experts_->route((*norm2_)(x))).pack();
  }));
  const ExpertMlps::Routed& r = half.routed;
  const RowDraws visitors = draws.select(r.visitor_R);
  const at::Tensor extra =
      visitors.active()
          ? at::stack({visitors.counters.sample, visitors.counters.position}, /*dim=*/1)
          : at::Tensor();
  const std::string& experts_group = experts_->experts_group();
  const ExpertDispatch::Arrived arrived =
      dispatch.send(experts_group, r.rows_RH, extra, r.visits_E);
  RowDraws theirs;
  if (arrived.extra.defined()) {
    theirs = {{arrived.extra.select(1, 0).contiguous(), arrived.extra.select(1, 1).contiguous()},
              draws.key};
  }
  const auto body = [this, theirs, counts = arrived.counts, &dispatch](const Tensors& in) {
    return Tensors{compute_arrived(in[0], theirs, counts, dispatch)};
  };
  const Tensors results = ctx.runner.run(experts_group, {arrived.rows}, body);
  const at::Tensor y =
      half.x_TH + experts_->combine(arrived.send_back(results[0]), r.back_R, r.weight_Tk);
  if (wants_load_) return {y, r.load_2E};
  return {y};
}

}  // namespace mgm
