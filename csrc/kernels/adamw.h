// AdamW over flat fp32 buffers, one pass over memory, in torch.optim.AdamW's order of operations:
//   g = grad * grad_scale;  p *= 1 - lr wd;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g
//   g; p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
// Factors of the step are computed in fp64 and rounded to fp32 once, as torch does with its
// scalars.
#pragma once

#include <cstdint>

#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

struct AdamWScalars {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;  // t, from 1
};

// n elements each, on one device; G is float or Bf16.
template <class G>
struct AdamWBuffers {
  int64_t n = 0;
  float* master = nullptr;
  float* exp_avg = nullptr;     // m
  float* exp_avg_sq = nullptr;  // v
  const G* grad = nullptr;
  Bf16* copy = nullptr;  // receives the new master rounded; may be null
  const float* grad_scale =
      nullptr;                  // one number on the buffers' device, e.g. the clip factor; or null
  const float* skip = nullptr;  // one number there; not 0: nothing is touched; or null
};

template <class G>
void adamw_cpu(const AdamWBuffers<G>& buffers, const AdamWScalars& scalars,
               const ParallelFor& parallel);

// Asynchronous on `stream`; 30 bytes per element with bf16 gradients and copy, 32 with fp32
// gradients.
template <class G>
void adamw_cuda(const AdamWBuffers<G>& buffers, const AdamWScalars& scalars, CUstream_st* stream);

// What the element loop needs, in fp32.
struct AdamWFactors {
  explicit AdamWFactors(const AdamWScalars& s);
  float decay, one_minus_beta1, beta2, one_minus_beta2, minus_step_size, root_correction2, eps;
};

}  // namespace mgm::kernels
