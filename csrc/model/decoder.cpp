// Shape suffixes: T rows of the packed stream, M selected rows, H width, V vocabulary, E experts.
#include "model/decoder.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/rng.h"
#include "model/adapters.h"
#include "model/cached_attention.h"
#include "model/decoder_block.h"
#include "ops/attention.h"
#include "types/upload.h"

namespace mgm {
namespace {

// HF Gemma rounds the factor to the model's type before it multiplies.
at::Tensor scale_embeddings(const at::Tensor& x_TH) {
  const double factor = std::sqrt(double(x_TH.size(1)));
  return x_TH * at::scalar_tensor(factor, at::dtype(x_TH.scalar_type())).item<double>();
}

WeightFormat format_of(Quantize quantize) {
  switch (quantize) {
    case Quantize::kNone:
      break;
    case Quantize::kNf4:
      return WeightFormat::kNf4;
    case Quantize::kInt8:
      return WeightFormat::kInt8;
  }
  return WeightFormat::kDense;
}

SeqInfo on_device(const SeqInfo& seq, at::Device device) {
  SeqInfo out = seq;
  if (out.cu_seqlens.defined()) out.cu_seqlens = out.cu_seqlens.to(device);
  return out;
}

}  // namespace

Decoder::Decoder(const LlmConfig& config, const AdapterConfig& adapter, bool experts_apart)
    : Module("model", "model.embed_tokens"),
      config_(config),
      drops_(adapter.kind != AdapterKind::kNone && adapter.dropout > 0) {
  const int64_t width = config.hidden_size;
  embed_ = &add<Embedding>("model.embed_tokens", group(), config.vocab_size, width,
                           matrix_init(config, width));
  for (int64_t i = 0; i < config.num_layers; ++i) {
    blocks_.push_back(
        &add<DecoderBlock>(child_name("layers." + std::to_string(i)), config, i, experts_apart));
    blocks_.back()->list_linears(linears_);
  }
  for (Linear* linear : linears_) linear->hold_as(format_of(config.quantize));
  add_adapters(adapter, linears_);
  for (DecoderBlock* block : blocks_) block->number_experts();
  // A tied head keeps its norm with the embedding: one group, live from first use to last backward.
  head_group_ = config.tie_embeddings ? group() : "lm_head";
  norm_ = &add<RmsNorm>("model.norm", head_group_, width, config.norm_eps,
                        llm_traits(config.arch).unit_norm);
  if (config.tie_embeddings) {
    head_ = &embed_->weight();
  } else {
    const Linear& head = add<Linear>("lm_head", head_group_, width, config.vocab_size, false,
                                     linear_inits(config, width));
    head_ = &head.weight();
  }
}

void Decoder::list_uses(std::vector<GroupUse>& out) const {
  out.push_back({group(), /*vision=*/false, /*source=*/true});
  for (const DecoderBlock* block : blocks_) {
    out.push_back({block->group()});
    if (block->experts_group()) out.push_back({*block->experts_group()});
  }
  out.push_back({head_group_});
}

at::Tensor Decoder::embed(const at::Tensor& ids_T, const ForwardContext& ctx) const {
  return ctx.runner.run(group(), {ids_T}, [this](const Tensors& in) -> Tensors {
    return {(*embed_)(in[0].clamp_min(0))};
  })[0];
}

RowDraws Decoder::row_draws(const at::Tensor& positions_T, const SeqInfo& seq,
                            const ForwardContext& ctx) const {
  if (!ctx.training || !drops_) return {};
  MGM_CHECK(static_cast<int64_t>(seq.keys.size()) == seq.segments(), seq.keys.size(), " keys for ",
            seq.segments(), " segments");
  const at::Tensor sample = at::empty({seq.total()}, at::kLong);
  int64_t* out = sample.mutable_data_ptr<int64_t>();
  for (size_t s = 0; s < seq.keys.size(); ++s) {
    std::fill(out + seq.offsets[s], out + seq.offsets[s + 1], static_cast<int64_t>(seq.keys[s]));
  }
  return {{upload(sample, positions_T.device()), positions_T},
          rng_key(ctx.seed, cat("lora_dropout ", ctx.step))};
}

bool Decoder::waits_for_visits() const {
  return std::any_of(blocks_.begin(), blocks_.end(),
                     [](const DecoderBlock* block) { return block->waits_for_visits(); });
}

void Decoder::split(std::vector<DecoderStage> stages) {
  MGM_CHECK(stages_.empty() && !stages.empty() && stages[0].first_block == 0, stages.size(),
            " stages after ", stages_.size());
  for (size_t s = 1; s < stages.size(); ++s) {
    MGM_CHECK(stages[s - 1].first_block < stages[s].first_block &&
                  stages[s].first_block < config_.num_layers,
              "stage ", s, " begins with block ", stages[s].first_block, ", the one before with ",
              stages[s - 1].first_block, ", of ", config_.num_layers);
  }
  stages_ = std::move(stages);
}

int64_t Decoder::block_of(const std::string& group) const {
  if (!config_.tie_embeddings && group == head_group_) return std::ssize(blocks_);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const std::string& own = blocks_[i]->group();
    if (group == own || group.rfind(own + ".", 0) == 0) return static_cast<int64_t>(i);
  }
  return -1;
}

at::Device Decoder::device_of(const std::string& group, at::Device first) const {
  const int64_t block = block_of(group);
  at::Device out = first;
  for (const DecoderStage& stage : stages_) {
    if (stage.first_block <= block) out = stage.device;
  }
  return out;
}

at::Tensor Decoder::blocks(at::Tensor x_TH, const at::Tensor& positions_T, const SeqInfo& seq,
                           const ForwardContext& ctx, const CacheRows& rows,
                           RouterLoad* load) const {
  if (llm_traits(config_.arch).scale_embeddings) x_TH = scale_embeddings(x_TH);
  if (stages_.empty()) {
    x_TH = run_blocks(0, blocks_.size(), x_TH, positions_T, seq, ctx, rows, load);
  }
  for (size_t s = 0; s < stages_.size(); ++s) {
    const auto first = static_cast<size_t>(stages_[s].first_block);
    const size_t end =
        s + 1 < stages_.size() ? static_cast<size_t>(stages_[s + 1].first_block) : blocks_.size();
    const at::Device device = stages_[s].device;
    x_TH = run_blocks(first, end, x_TH.to(device), positions_T.to(device), on_device(seq, device),
                      ctx, rows, load);
  }
  if (rows.cache) advance_rows(rows, seq);
  return x_TH;
}

at::Tensor Decoder::run_blocks(size_t first, size_t end, at::Tensor x_TH,
                               const at::Tensor& positions_T, const SeqInfo& seq,
                               const ForwardContext& ctx, const CacheRows& rows,
                               RouterLoad* load) const {
  const double query =
      config_.query_scalar > 0 ? config_.query_scalar : double(head_width(config_));
  const double scale = 1.0 / std::sqrt(query), cap = config_.attention_softcap;
  std::optional<CachedAttention> cached;
  Rotary rotary;
  if (rows.cache) {
    cached.emplace(rows, seq, positions_T);
    rotary = {rows.cache->cos[first].index_select(0, positions_T),
              rows.cache->sin[first].index_select(0, positions_T)};
  } else {
    rotary = make_rotary(config_, positions_T, x_TH.scalar_type());
  }
  const CachedAttention* cache = cached ? &*cached : nullptr;
  const RowDraws draws = row_draws(positions_T, seq, ctx);
  for (size_t i = first; i < end; ++i) {
    const DecoderBlock* block = blocks_[i];
    const int64_t window = block->window();
    const auto attend = [=](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
      if (cache) return cache->attend(i, q, k, v, scale, window, cap);
      return ops::attention(q, k, v, seq, /*causal=*/true, scale, window, cap);
    };
    const Tensors out = block->run(x_TH, rotary, attend, draws, ctx);
    x_TH = out[0];
    if (load && out.size() > 1) {
      load->sums_2E = load->sums_2E.defined() ? load->sums_2E + out[1] : out[1];
      load->rows += x_TH.size(0);
    }
  }
  return x_TH;
}

at::Tensor Decoder::balance_loss(const RouterLoad& load) const {
  const at::Tensor share_2E = load.sums_2E / double(load.rows);
  return (share_2E[0] * share_2E[1].detach()).sum() *
         (double(config_.num_experts) * config_.router_aux_loss);
}

at::Tensor Decoder::head(const at::Tensor& hidden_MH) const {
  const at::Tensor out = at::linear((*norm_)(hidden_MH), head_->value);
  const at::Tensor logits_MV = out.scalar_type() == at::kDouble ? out : out.to(at::kFloat);
  const double cap = config_.final_softcap;
  return cap > 0 ? (logits_MV / cap).tanh() * cap : logits_MV;
}

at::Tensor Decoder::logits(const at::Tensor& hidden_MH, const ForwardContext& ctx) const {
  const at::Tensor here_MH = stages_.empty() ? hidden_MH : hidden_MH.to(head_device());
  return ctx.runner.run(head_group_, {here_MH},
                        [this](const Tensors& in) -> Tensors { return {head(in[0])}; })[0];
}

at::Tensor Decoder::loss_sum(const at::Tensor& hidden_MH, const at::Tensor& targets_M,
                             const ForwardContext& ctx) const {
  return ctx.runner.run(head_group_, {hidden_MH}, [this, targets_M](const Tensors& in) -> Tensors {
    return {at::cross_entropy_loss(head(in[0]), targets_M, {}, at::Reduction::Sum)};
  })[0];
}

KvCache Decoder::make_cache(int64_t rows, int64_t capacity, at::TensorOptions options) const {
  KvCache cache;
  cache.lengths.assign(static_cast<size_t>(rows), 0);
  const std::vector<int64_t> shape = {rows, capacity, config_.num_kv_heads, head_width(config_)};
  Rotary rotary;
  for (const DecoderBlock* block : blocks_) {
    const at::Device device = device_of(block->group(), options.device());
    const at::TensorOptions here = options.device(device);
    // Not empty: a NaN behind a row's end would come through a mask.
    cache.keys.push_back(at::zeros(shape, here));
    cache.values.push_back(at::zeros(shape, here));
    if (!rotary.cos.defined() || rotary.cos.device() != device) {
      rotary = make_rotary(config_, at::arange(capacity, here.dtype(at::kLong)),
                           at::typeMetaToScalarType(options.dtype()));
    }
    cache.cos.push_back(rotary.cos);
    cache.sin.push_back(rotary.sin);
  }
  return cache;
}

}  // namespace mgm
