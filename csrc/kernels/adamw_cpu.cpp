#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/adamw.h"
#include "kernels/vec.h"

namespace mgm::kernels {
namespace {

float square_root(float x) { return std::sqrt(x); }
vec::Floats square_root(vec::Floats x) { return _mm256_sqrt_ps(x); }

// V: float, or eight floats. Both give the same bits.
template <class V>
void update(V& p, V& m, V& v, const V& g, const AdamWFactors& f) {
  p = p * f.decay;
  m = m + (g - m) * f.one_minus_beta1;
  v = v * f.beta2 + g * f.one_minus_beta2 * g;
  const V denominator = square_root(v) / f.root_correction2 + f.eps;
  p = p + m * f.minus_step_size / denominator;
}

}  // namespace

AdamWFactors::AdamWFactors(const AdamWScalars& s) {
  MGM_CHECK(s.step >= 1, "optimizer steps count from 1, got ", s.step);
  const double t = static_cast<double>(s.step);
  decay = static_cast<float>(1 - s.lr * s.weight_decay);
  one_minus_beta1 = static_cast<float>(1 - s.beta1);
  beta2 = static_cast<float>(s.beta2);
  one_minus_beta2 = static_cast<float>(1 - s.beta2);
  minus_step_size = static_cast<float>(-s.lr / (1 - std::pow(s.beta1, t)));
  root_correction2 = static_cast<float>(std::sqrt(1 - std::pow(s.beta2, t)));
  eps = static_cast<float>(s.eps);
}

template <class G>
void adamw_cpu(const AdamWBuffers<G>& b, const AdamWScalars& scalars, const ParallelFor& parallel) {
  if (b.skip && *b.skip != 0) return;
  const AdamWFactors factors(scalars);
  const float scale = b.grad_scale ? *b.grad_scale : 1.0f;
  constexpr int64_t kStep = vec::kLanes<float>, kChunk = 4096;
  parallel((b.n + kChunk - 1) / kChunk, /*grain=*/4, [&](int64_t chunk_begin, int64_t chunk_end) {
    const int64_t end = std::min(b.n, chunk_end * kChunk);
    int64_t i = chunk_begin * kChunk;
    for (; i + kStep <= end; i += kStep) {
      vec::Floats p = vec::load(b.master + i), m = vec::load(b.exp_avg + i),
                  v = vec::load(b.exp_avg_sq + i);
      update(p, m, v, vec::Floats(vec::load(b.grad + i) * scale), factors);
      vec::store(p, b.master + i);
      vec::store(m, b.exp_avg + i);
      vec::store(v, b.exp_avg_sq + i);
      if (b.copy) vec::store(p, b.copy + i);
    }
    for (; i < end; ++i) {
      update(b.master[i], b.exp_avg[i], b.exp_avg_sq[i], as_real(b.grad[i]) * scale, factors);
      if (b.copy) b.copy[i] = to_bf16(b.master[i]);
    }
  });
}

template void adamw_cpu(const AdamWBuffers<float>&, const AdamWScalars&, const ParallelFor&);
template void adamw_cpu(const AdamWBuffers<Bf16>&, const AdamWScalars&, const ParallelFor&);

}  // namespace mgm::kernels
