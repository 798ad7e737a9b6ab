// Beam search with the results of Hugging Face transformers 4.57 (GenerationMixin._beam_search,
// early_stopping False, do_sample False): its fp32 arithmetic, its order of steps, and its rule of
// when no running beam can still improve the finished ones. Shape suffixes: B beams, V tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "infer/row_decoder.h"

namespace mgm {

struct BeamConfig {
  int64_t num_beams = 4;
  // An answer's score is its log probability divided by its length to this power.
  double length_penalty = 1;
  double repetition_penalty = 1;  // as in infer/sampler.h, of log probabilities
  std::vector<int32_t> stop_ids;
  int64_t vocabulary = 0;  // rows of the head that are tokens
};

struct BeamResult {
  std::vector<int32_t> ids;  // of the best answer, the end token included if there was one
  bool stopped = false;      // by an end token
  double score = 0;
  int64_t steps = 0;  // passes of one token per beam
};

// `rows` holds one prompt of `prompt_ids` (image markers count for nothing), logits_1V are what
// rows.add() returned for it, and there is a free row for every further beam. An answer has at most
// `budget` tokens, at least 1. Afterwards `rows` is empty. The host waits for the device once per
// step. Throws NonFiniteError.
BeamResult beam_search(RowDecoder& rows, const at::Tensor& logits_1V,
                       const std::vector<int32_t>& prompt_ids, int64_t budget,
                       const BeamConfig& config, const ForwardContext& ctx);

}  // namespace mgm
