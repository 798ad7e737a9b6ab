#include "kernels/adamw.h"
#include "kernels/cuda_common.cuh"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256;

__device__ inline void update(float& p, float& m, float& v, float g, const AdamWFactors& f) {
  p = p * f.decay;
  m = m + (g - m) * f.one_minus_beta1;
  v = v * f.beta2 + g * f.one_minus_beta2 * g;
  p = p + m * f.minus_step_size / (sqrtf(v) / f.root_correction2 + f.eps);
}

template <class G, int VEC>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const AdamWBuffers<G> b, const AdamWFactors f) {
  if (b.skip && *b.skip != 0) return;
  const float scale = b.grad_scale ? *b.grad_scale : 1.0f;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * VEC;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * VEC; i < b.n;
       i += stride) {
    Floats<VEC> p = load<VEC>(b.master + i), m = load<VEC>(b.exp_avg + i),
                v = load<VEC>(b.exp_avg_sq + i);
    const Floats<VEC> g = load<VEC>(b.grad + i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) update(p.v[k], m.v[k], v.v[k], g.v[k] * scale, f);
    store<VEC>(p, b.master + i);
    store<VEC>(m, b.exp_avg + i);
    store<VEC>(v, b.exp_avg_sq + i);
    if (b.copy) store<VEC>(p, b.copy + i);
  }
}

template <class G, int VEC>
void launch(const AdamWBuffers<G>& b, const AdamWFactors& factors, cudaStream_t stream) {
  const int64_t blocks = (b.n + kThreads * VEC - 1) / (kThreads * VEC);
  adamw_kernel<G, VEC>
      <<<static_cast<unsigned>(min(blocks, int64_t{1} << 16)), kThreads, 0, stream>>>(b, factors);
  check_cuda(cudaGetLastError(), "adamw");
}

}  // namespace

template <class G>
void adamw_cuda(const AdamWBuffers<G>& b, const AdamWScalars& scalars, CUstream_st* stream) {
  if (b.n == 0) return;
  const AdamWFactors factors(scalars);
  const bool vectorise = b.n % 4 == 0 && aligned(b.master, 16) && aligned(b.exp_avg, 16) &&
                         aligned(b.exp_avg_sq, 16) && aligned(b.grad, 4 * sizeof(G)) &&
                         aligned(b.copy, 8);
  if (vectorise) {
    launch<G, 4>(b, factors, stream);
  } else {
    launch<G, 1>(b, factors, stream);
  }
}

template void adamw_cuda(const AdamWBuffers<float>&, const AdamWScalars&, CUstream_st*);
template void adamw_cuda(const AdamWBuffers<Bf16>&, const AdamWScalars&, CUstream_st*);

}  // namespace mgm::kernels
