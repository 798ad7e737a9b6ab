// Shape suffixes: T rows of the packed stream, M selected rows, H width, V vocabulary, A attention
// heads, D head width.
#include "model/decoder.h"

#include <ATen/ATen.h>

#include <cmath>

#include "base/error.h"
#include "ops/attention.h"

namespace mgm {
namespace {

// cos and sin of the rotary angles, [T, 1, D], computed in fp32 and cast last (HF
// LlamaRotaryEmbedding).
struct Rotary {
  at::Tensor cos, sin;
};

Rotary make_rotary(const at::Tensor& positions_T, int64_t head_dim, double theta,
                   at::ScalarType dtype) {
  const bool fp64 = dtype == at::kDouble;
  const auto options = positions_T.options().dtype(fp64 ? at::kDouble : at::kFloat);
  const at::Tensor exponent = at::arange(0, head_dim, 2, options) / double(head_dim);
  const at::Tensor inv_freq = at::reciprocal(at::pow(theta, exponent));
  const at::Tensor angle = at::outer(positions_T.to(options.dtype()), inv_freq);
  const at::Tensor both = at::cat({angle, angle}, -1).unsqueeze(1);
  return {both.cos().to(dtype), both.sin().to(dtype)};
}

at::Tensor rotate(const at::Tensor& x_TAD, const Rotary& r) {
  const auto halves = x_TAD.chunk(2, -1);
  return x_TAD * r.cos + at::cat({-halves[1], halves[0]}, -1) * r.sin;
}

// Attention of `fresh` queries over all cached keys and values, the last of which are their own.
// q [m, A, D]; k, v [n, kv heads, D] with n >= m; row i sees keys 0 .. n - m + i.
at::Tensor attention_cached(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double scale) {
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const int64_t m = q.size(0), n = k.size(0);
  std::optional<at::Tensor> mask;
  if (m > 1 && n > m) {
    mask = at::ones({m, n}, q.options().dtype(at::kBool)).tril(n - m);
  }
  return at::scaled_dot_product_attention(heads_first(q), heads_first(k), heads_first(v), mask,
                                          /*dropout_p=*/0.0, /*is_causal=*/m > 1 && n == m, scale,
                                          /*enable_gqa=*/true)
      .squeeze(0)
      .transpose(0, 1);
}

Init matrix_init(const LlmConfig& c, int64_t fan_in) {
  return normal_init(c.init_std > 0 ? c.init_std : std::pow(double(fan_in), -0.5));
}

}  // namespace

int64_t head_width(const LlmConfig& config) {
  return config.head_dim > 0 ? config.head_dim : config.hidden_size / config.num_heads;
}

class DecoderBlock : public Module {
 public:
  DecoderBlock(const std::string& prefix, const LlmConfig& c)
      : Module(prefix, prefix), head_dim_(head_width(c)) {
    auto linear = [&](const char* name, int64_t in, int64_t out) {
      return &add<Linear>(child_name(name), group(), in, out, false,
                          Linear::Inits{matrix_init(c, in), {}});
    };
    q_ = linear("self_attn.q_proj", c.hidden_size, c.num_heads * head_dim_);
    k_ = linear("self_attn.k_proj", c.hidden_size, c.num_kv_heads * head_dim_);
    v_ = linear("self_attn.v_proj", c.hidden_size, c.num_kv_heads * head_dim_);
    o_ = linear("self_attn.o_proj", c.num_heads * head_dim_, c.hidden_size);
    if (c.num_experts == 0) {
      gate_ = linear("mlp.gate_proj", c.hidden_size, c.intermediate_size);
      up_ = linear("mlp.up_proj", c.hidden_size, c.intermediate_size);
      down_ = linear("mlp.down_proj", c.intermediate_size, c.hidden_size);
    } else {  // declared so that the model can be planned; see Decoder::blocks
      linear("block_sparse_moe.gate", c.hidden_size, c.num_experts);
      for (int64_t e = 0; e < c.num_experts; ++e) {
        const std::string expert = cat("block_sparse_moe.experts.", e, ".");
        linear((expert + "w1").c_str(), c.hidden_size, c.intermediate_size);
        linear((expert + "w2").c_str(), c.intermediate_size, c.hidden_size);
        linear((expert + "w3").c_str(), c.hidden_size, c.intermediate_size);
      }
    }
    norm1_ = &add<RmsNorm>(child_name("input_layernorm"), group(), c.hidden_size, c.norm_eps);
    norm2_ =
        &add<RmsNorm>(child_name("post_attention_layernorm"), group(), c.hidden_size, c.norm_eps);
  }

  // `attend` maps rotated q, k and v [T, heads, D] to [T, A, D].
  template <class Attend>
  at::Tensor forward(const at::Tensor& x_TH, const Rotary& rotary, Attend attend) const {
    const at::Tensor h = (*norm1_)(x_TH);
    const at::Tensor q = rotate((*q_)(h).unflatten(-1, {-1, head_dim_}), rotary);
    const at::Tensor k = rotate((*k_)(h).unflatten(-1, {-1, head_dim_}), rotary);
    const at::Tensor v = (*v_)(h).unflatten(-1, {-1, head_dim_});
    const at::Tensor x = x_TH + (*o_)(attend(q, k, v).flatten(1));
    const at::Tensor m = (*norm2_)(x);
    return x + (*down_)(at::silu((*gate_)(m)) * (*up_)(m));
  }

 private:
  int64_t head_dim_;
  Linear *q_, *k_, *v_, *o_;
  Linear *gate_ = nullptr, *up_ = nullptr, *down_ = nullptr;
  RmsNorm *norm1_, *norm2_;
};

Decoder::Decoder(const LlmConfig& config)
    : Module("model", "model.embed_tokens"), config_(config), head_dim_(head_width(config)) {
  const int64_t width = config.hidden_size;
  embed_ = &add<Embedding>("model.embed_tokens", group(), config.vocab_size, width,
                           matrix_init(config, width));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    blocks_.push_back(&add<DecoderBlock>(child_name("layers." + std::to_string(i)), config));
  }
  // A tied head keeps its norm with the embedding: one group, live from first use to last backward.
  head_group_ = config.tie_embeddings ? group() : "lm_head";
  norm_ = &add<RmsNorm>("model.norm", head_group_, width, config.norm_eps);
  if (config.tie_embeddings) {
    head_ = &embed_->weight();
  } else {
    const Linear& head = add<Linear>("lm_head", head_group_, width, config.vocab_size, false,
                                     Linear::Inits{matrix_init(config, width), {}});
    head_ = &head.weight();
  }
}

void Decoder::list_uses(std::vector<GroupUse>& out) const {
  out.push_back({group(), /*vision=*/false, /*source=*/true});
  for (const DecoderBlock* block : blocks_) out.push_back({block->group()});
  out.push_back({head_group_});
}

at::Tensor Decoder::embed(const at::Tensor& ids_T, const ForwardContext& ctx) const {
  return ctx.runner.run(group(), {ids_T}, [this](const Tensors& in) -> Tensors {
    return {(*embed_)(in[0].clamp_min(0))};
  })[0];
}

at::Tensor Decoder::blocks(at::Tensor x_TH, const at::Tensor& positions_T, const SeqInfo& seq,
                           const ForwardContext& ctx, KvCache* cache) const {
  if (config_.arch != LlmArch::kLlama) {
    throw ConfigError(
        "model.llm.arch: only llama can be run; gemma and mixtral can be described, counted "
        "and planned (mgm train --plan)");
  }
  const double scale = 1.0 / std::sqrt(double(head_dim_));
  const Rotary rotary = make_rotary(positions_T, head_dim_, config_.rope_theta, x_TH.scalar_type());
  const int64_t past = cache ? cache->length : 0;
  const int64_t fresh = x_TH.size(0);
  if (cache) {
    MGM_CHECK(seq.segments() == 1, "a cache holds one sequence");
    MGM_CHECK(past + fresh <= cache->capacity(), "cache of ", cache->capacity(),
              " tokens cannot take ", fresh, " more after ", past);
  }
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const DecoderBlock* block = blocks_[i];
    const auto body = [=](const Tensors& in) -> Tensors {
      return {block->forward(
          in[0], rotary, [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
            if (!cache) return ops::attention(q, k, v, seq, /*causal=*/true, scale);
            cache->keys[i].narrow(0, past, fresh).copy_(k);
            cache->values[i].narrow(0, past, fresh).copy_(v);
            return attention_cached(q, cache->keys[i].narrow(0, 0, past + fresh),
                                    cache->values[i].narrow(0, 0, past + fresh), scale);
          })};
    };
    x_TH = ctx.runner.run(block->group(), {x_TH}, body)[0];
  }
  if (cache) cache->length = past + fresh;
  return x_TH;
}

at::Tensor Decoder::head(const at::Tensor& hidden_MH) const {
  return at::linear((*norm_)(hidden_MH), head_->value);
}

at::Tensor Decoder::logits(const at::Tensor& hidden_MH, const ForwardContext& ctx) const {
  return ctx.runner.run(head_group_, {hidden_MH}, [this](const Tensors& in) -> Tensors {
    const at::Tensor out = head(in[0]);
    return {out.scalar_type() == at::kDouble ? out : out.to(at::kFloat)};
  })[0];
}

at::Tensor Decoder::loss_sum(const at::Tensor& hidden_MH, const at::Tensor& targets_M,
                             const ForwardContext& ctx) const {
  return ctx.runner.run(head_group_, {hidden_MH}, [this, targets_M](const Tensors& in) -> Tensors {
    const at::Tensor out = head(in[0]);
    const at::Tensor logits_MV = out.scalar_type() == at::kDouble ? out : out.to(at::kFloat);
    return {at::cross_entropy_loss(logits_MV, targets_M, {}, at::Reduction::Sum)};
  })[0];
}

KvCache Decoder::make_cache(int64_t capacity, at::TensorOptions options) const {
  KvCache cache;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    const std::vector<int64_t> shape = {capacity, config_.num_kv_heads, head_dim_};
    cache.keys.push_back(at::empty(shape, options));
    cache.values.push_back(at::empty(shape, options));
  }
  return cache;
}

}  // namespace mgm
