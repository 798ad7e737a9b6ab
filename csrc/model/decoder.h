// The language model: embedding, decoder blocks, final norm, tied or untied head, for every
// architecture of config/llm_arch.h (HF ...ForCausalLM). Works on a packed token stream of T rows.
#pragma once

#include "config/llm_arch.h"
#include "nn/block_runner.h"
#include "nn/layers.h"
#include "types/batch.h"
#include "types/kv_cache.h"

namespace mgm {

class DecoderBlock;

// The blocks from this one on, up to the next stage's, lie on `device`.
struct DecoderStage {
  int64_t first_block = 0;
  at::Device device = at::kCPU;
};

// How evenly the experts of all blocks were visited in one forward pass.
struct RouterLoad {
  at::Tensor sums_2E;  // ExpertMlps::Output::load_2E of all blocks; undefined without a router loss
  int64_t rows = 0;    // tokens times blocks
};

class Decoder : public Module {
 public:
  // `experts_apart`: model/decoder_block.h.
  explicit Decoder(const LlmConfig& config, const AdapterConfig& adapter = {},
                   bool experts_apart = false);
  const LlmConfig& config() const { return config_; }

  // Spreads the blocks over devices, for inference: blocks() moves what it computes from one stage
  // to the next. The first stage begins with block 0. Once, before storage is bound, which is then
  // to lie where device_of() says.
  void split(std::vector<DecoderStage> stages);
  // Of any block: DecoderBlock::waits_for_visits.
  bool waits_for_visits() const;
  const std::vector<DecoderStage>& stages() const { return stages_; }  // empty without split()

  // The block that a group of parameters is part of; an untied head is behind the last one, all
  // else in front of block 0, which is -1.
  int64_t block_of(const std::string& group) const;
  // Where the parameters of a group belong after split(): on the device of its block's stage, a
  // head on the last one's, what is in front on `first`.
  at::Device device_of(const std::string& group, at::Device first) const;
  at::Device head_device() const { return head_->value.device(); }  // of logits

  // int64 ids [T] -> [T, H]. Rows with a negative id (image markers) get the embedding of id 0; the
  // caller overwrites them.
  at::Tensor embed(const at::Tensor& ids_T, const ForwardContext& ctx) const;

  // x [T, H], int64 positions [T] -> hidden [T, H] before the final norm. x are embeddings as they
  // are looked up and spliced: where an architecture scales them, it is done here. With a cache,
  // each segment of x follows what its row holds, and its keys and values are appended: prompts for
  // empty rows, one token for each row, or several for a single row (model/cached_attention.h).
  // `load` gets the experts' load where llm.router_aux_loss asks for it.
  at::Tensor blocks(at::Tensor x_TH, const at::Tensor& positions_T, const SeqInfo& seq,
                    const ForwardContext& ctx, const CacheRows& rows = {},
                    RouterLoad* load = nullptr) const;

  // The load-balancing loss times llm.router_aux_loss (HF load_balancing_loss_func); fp32 scalar.
  at::Tensor balance_loss(const RouterLoad& load) const;

  // hidden [M, H] -> fp32 logits [M, V], after the final norm.
  at::Tensor logits(const at::Tensor& hidden_MH, const ForwardContext& ctx) const;

  // Sum of the cross entropies of targets int64 [M] under logits(hidden [M, H]); fp32 scalar.
  at::Tensor loss_sum(const at::Tensor& hidden_MH, const at::Tensor& targets_M,
                      const ForwardContext& ctx) const;

  void list_uses(std::vector<GroupUse>& out) const;

  // The linears of the blocks in order, routers left out: those that adapters may name.
  const std::vector<Linear*>& linears() const { return linears_; }

  // An empty cache of `rows` sequences of at most `capacity` tokens each. After split() each
  // layer's part lies on its block's device.
  KvCache make_cache(int64_t rows, int64_t capacity, at::TensorOptions options) const;

 private:
  at::Tensor head(const at::Tensor& hidden_MH) const;  // logits, fp32 at least
  // Blocks first .. end - 1, of one device, where all of this lies.
  at::Tensor run_blocks(size_t first, size_t end, at::Tensor x_TH, const at::Tensor& positions_T,
                        const SeqInfo& seq, const ForwardContext& ctx, const CacheRows& rows,
                        RouterLoad* load) const;
  RowDraws row_draws(const at::Tensor& positions_T, const SeqInfo& seq,
                     const ForwardContext& ctx) const;

  LlmConfig config_;
  bool drops_ = false;  // adapters with dropout
  Embedding* embed_;
  std::vector<DecoderBlock*> blocks_;
  std::vector<DecoderStage> stages_;
  std::vector<Linear*> linears_;
  RmsNorm* norm_;
  const Param* head_;  // the embedding's weight when tied
  std::string head_group_;
};

}  // namespace mgm
