// From logits to the next token: greedy, or sampling with temperature and top-p. Sampling draws
// from the counter RNG, so a seed fixes the text.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mgm {

struct SamplingConfig {
  double temperature = 0;  // 0: greedy
  double top_p = 1;        // keep the smallest set of tokens with at least this probability
  uint64_t seed = 0;
  int64_t max_new_tokens = 512;
};

// `logits` fp32 [V], any device; `position` numbers the draw within a generation.
int64_t sample_token(const at::Tensor& logits, const SamplingConfig& config, int64_t position);

}  // namespace mgm
