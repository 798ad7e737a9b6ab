// From logits to the next token of each of several sequences: greedy, or drawn after repetition
// penalty, temperature, top-k and top-p, whose values are those of the LogitsProcessors of Hugging
// Face transformers (generation/logits_process.py). Draws come from the counter RNG: a seed fixes
// the text, whatever else is in the batch. Shape suffixes: R sequences, V vocabulary.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mgm {

struct SamplingConfig {
  double temperature = 0;         // 0: greedy; else at least 1e-4
  int64_t top_k = 0;              // draw from this many likeliest tokens and their equals; 0: all
  double top_p = 1;               // draw from the smallest set of tokens with this probability
  double repetition_penalty = 1;  // above 1, tokens of prompt and answer become less likely
  uint64_t seed = 0;
  int64_t max_new_tokens = 512;
  int64_t num_beams = 1;      // above 1: beam search (infer/beam_search.h), at temperature 0 only
  double length_penalty = 1;  // of beam search
};

// Throws ConfigError for a temperature that is negative or so near to 0 that scores overflow, and
// for beam search at a temperature.
void check_sampling(const SamplingConfig& config);

// fp32 logits [R, V] -> [R, V], -infinity where a token cannot be drawn. `seen_RV` (bool) marks the
// tokens that the penalty is for; it may be undefined without one. At temperature 0 only the
// penalty applies. Order: penalty, temperature, top-k, top-p. top_p 0 leaves the likeliest token.
at::Tensor process_logits(const at::Tensor& logits_RV, const at::Tensor& seen_RV,
                          const SamplingConfig& config);

// int64 [R] on the logits' device; -1 where a row holds a NaN or an infinity. uniform_R: fp64 in
// (0, 1), one draw per row; may be undefined at temperature 0. Waits for no device.
at::Tensor choose_tokens(const at::Tensor& logits_RV, const at::Tensor& seen_RV,
                         const SamplingConfig& config, const at::Tensor& uniform_R);

// Chooses for sequences that begin with prompts, and remembers what they hold.
class RowSampler {
 public:
  // For at most `rows` sequences at a time. Throws as check_sampling().
  RowSampler(const SamplingConfig& config, int64_t rows, int64_t vocabulary, at::Device device);

  // One more sequence. Ids of its prompt count for the repetition penalty; ids outside the
  // vocabulary (image markers) do not. `stream` tells its draws from those of other sequences.
  void add(const std::vector<int32_t>& prompt_ids, uint64_t stream);

  // Forgets a sequence; the last one takes its place.
  void remove(int64_t row);

  struct Choice {
    at::Tensor ids_R;          // int64, on the device
    std::vector<int32_t> ids;  // the same on the host
  };
  // The next tokens of the sequences first .. first + R - 1. The host waits for the device once.
  // Throws NonFiniteError naming the token's number within its answer.
  Choice choose(int64_t first, const at::Tensor& logits_RV);

 private:
  struct Sequence {
    uint64_t stream = 0, drawn = 0;
  };
  at::Tensor uniform(int64_t first, int64_t count) const;

  SamplingConfig config_;
  uint64_t key_;
  at::Device device_;
  std::vector<Sequence> sequences_;
  at::Tensor seen_RV_;  // defined with a penalty
};

}  // namespace mgm
