#include "infer/sampler.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "base/rng.h"

namespace mgm {

int64_t sample_token(const at::Tensor& logits, const SamplingConfig& config, int64_t position) {
  if (!at::isfinite(logits).all().item<bool>()) {
    throw NonFiniteError("the logits of generated token ", position, " are not finite");
  }
  if (config.temperature <= 0) return logits.argmax().item<int64_t>();
  // Descending probabilities; the order of equal ones is fixed by a stable sort.
  const at::Tensor scaled = logits.to(at::kCPU, at::kDouble) / config.temperature;
  const auto sorted = at::softmax(scaled, 0).sort(/*stable=*/true, 0, /*descending=*/true);
  const at::Tensor probabilities = std::get<0>(sorted).contiguous();
  const at::Tensor order = std::get<1>(sorted).contiguous();
  const double* p = probabilities.data_ptr<double>();
  const int64_t n = probabilities.numel();
  int64_t kept = 0;
  double mass = 0;
  while (kept < n && (kept == 0 || mass < config.top_p)) mass += p[kept++];
  double draw =
      mass * uniform01(rng_key(config.seed, "sample"), 0, static_cast<uint64_t>(position));
  for (int64_t i = 0; i < kept; ++i) {
    draw -= p[i];
    if (draw <= 0) return order.data_ptr<int64_t>()[i];
  }
  return order.data_ptr<int64_t>()[kept - 1];
}

}  // namespace mgm
