// The language model: a Llama-shape decoder (HF LlamaForCausalLM). Grouped-query attention, rotary
// embedding, SwiGLU, RMSNorm, tied or untied head. Works on a packed token stream of T rows.
#pragma once

#include "config/run_config.h"
#include "nn/block_runner.h"
#include "nn/layers.h"
#include "types/batch.h"
#include "types/kv_cache.h"

namespace mgm {

class DecoderBlock;

class Decoder : public Module {
 public:
  explicit Decoder(const LlmConfig& config);

  // int64 ids [T] -> [T, H]. Rows with a negative id (image markers) get the embedding of id 0; the
  // caller overwrites them.
  at::Tensor embed(const at::Tensor& ids_T, const ForwardContext& ctx) const;

  // x [T, H], int64 positions [T] -> hidden [T, H] before the final norm. With a cache, x holds the
  // tokens that follow the cached ones of a single sequence; their keys and values are appended.
  at::Tensor blocks(at::Tensor x_TH, const at::Tensor& positions_T, const SeqInfo& seq,
                    const ForwardContext& ctx, KvCache* cache = nullptr) const;

  // hidden [M, H] -> fp32 logits [M, V], after the final norm.
  at::Tensor logits(const at::Tensor& hidden_MH, const ForwardContext& ctx) const;

  // Sum of the cross entropies of targets int64 [M] under logits(hidden [M, H]); fp32 scalar.
  at::Tensor loss_sum(const at::Tensor& hidden_MH, const at::Tensor& targets_M,
                      const ForwardContext& ctx) const;

  void list_uses(std::vector<GroupUse>& out) const;

  KvCache make_cache(int64_t capacity, at::TensorOptions options) const;

 private:
  at::Tensor head(const at::Tensor& hidden_MH) const;

  LlmConfig config_;
  int64_t head_dim_;
  Embedding* embed_;
  std::vector<DecoderBlock*> blocks_;
  RmsNorm* norm_;
  const Param* head_;  // the embedding's weight when tied
  std::string head_group_;
};

// Exact head width of a config (head_dim, or hidden_size / num_heads).
int64_t head_width(const LlmConfig& config);

}  // namespace mgm
