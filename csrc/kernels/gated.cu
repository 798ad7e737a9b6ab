#include <algorithm>

#include "kernels/cuda_common.cuh"
#include "kernels/gated.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256;
constexpr float kSqrtHalf = 0.70710678118654752440f;
constexpr float kDensity = 0.39894228040143267794f;    // 1 / sqrt(2 pi)
constexpr float kTanhScale = 0.79788456080286535588f;  // sqrt(2 / pi)
constexpr float kTanhCube = 0.044715f;

template <GateKind KIND>
__device__ inline float act(float x) {
  if constexpr (KIND == GateKind::kSilu) return x / (1.0f + expf(-x));
  if constexpr (KIND == GateKind::kGelu) return x * 0.5f * (1.0f + erff(x * kSqrtHalf));
  const float inner = kTanhScale * (x + kTanhCube * x * x * x);
  return 0.5f * x * (1.0f + tanhf(inner));
}

template <GateKind KIND>
__device__ inline float act_slope(float x) {
  if constexpr (KIND == GateKind::kSilu) {
    const float s = 1.0f / (1.0f + expf(-x));
    return s * (1.0f + x * (1.0f - s));
  }
  if constexpr (KIND == GateKind::kGelu) {
    return 0.5f * (1.0f + erff(x * kSqrtHalf)) + x * expf(-0.5f * x * x) * kDensity;
  }
  const float t = tanhf(kTanhScale * (x + kTanhCube * x * x * x));
  const float inner_slope = kTanhScale * (1.0f + 3.0f * kTanhCube * x * x);
  return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner_slope;
}

// Threads along the columns, blocks also over rows.
template <class T, int VEC, GateKind KIND, bool BACKWARD>
__global__ void __launch_bounds__(kThreads) gated_kernel(const GatedRows<T> r) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * VEC;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * VEC;
  for (int64_t row = blockIdx.y; row < r.rows; row += gridDim.y) {
    for (int64_t c = first; c < r.width; c += step) {
      const int64_t i = row * r.width + c;
      const Floats<VEC> gate = load<VEC>(r.gate + row * r.gate_stride + c);
      const Floats<VEC> up = load<VEC>(r.up + row * r.up_stride + c);
      Floats<VEC> a, b;
      if constexpr (!BACKWARD) {
#pragma unroll
        for (int k = 0; k < VEC; ++k) a.v[k] = rounded(act<KIND>(gate.v[k]), r.gate) * up.v[k];
        store<VEC>(a, r.y + i);
      } else {
        const Floats<VEC> d = load<VEC>(r.d_y + i);
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
          a.v[k] = rounded(__fmul_rn(d.v[k], up.v[k]), r.gate) * act_slope<KIND>(gate.v[k]);
          b.v[k] = d.v[k] * rounded(act<KIND>(gate.v[k]), r.gate);
        }
        store<VEC>(a, r.d_gate + i);
        store<VEC>(b, r.d_up + i);
      }
    }
  }
}

template <class T, int VEC, bool BACKWARD>
void launch(const GatedRows<T>& r, CUstream_st* stream) {
  const int64_t columns = (r.width + kThreads * VEC - 1) / (kThreads * VEC);
  const dim3 blocks(static_cast<unsigned>(std::min<int64_t>(columns, 1 << 20)),
                    static_cast<unsigned>(std::min<int64_t>(r.rows, 65535)));
  switch (r.kind) {
    case GateKind::kSilu:
      gated_kernel<T, VEC, GateKind::kSilu, BACKWARD><<<blocks, kThreads, 0, stream>>>(r);
      break;
    case GateKind::kGelu:
      gated_kernel<T, VEC, GateKind::kGelu, BACKWARD><<<blocks, kThreads, 0, stream>>>(r);
      break;
    case GateKind::kGeluTanh:
      gated_kernel<T, VEC, GateKind::kGeluTanh, BACKWARD><<<blocks, kThreads, 0, stream>>>(r);
      break;
  }
  check_cuda(cudaGetLastError(), "gated product");
}

template <class T, bool BACKWARD>
void run(GatedRows<T> r, CUstream_st* stream) {
  if (r.rows == 0 || r.width == 0) return;
  if (r.gate_stride == r.width && r.up_stride == r.width) {
    r.width *= r.rows;
    r.gate_stride = r.up_stride = r.width;
    r.rows = 1;
  }
  const auto fits = [](const T* p) { return !p || aligned(p, 4 * sizeof(T)); };
  const bool vectors = r.width % 4 == 0 && r.gate_stride % 4 == 0 && r.up_stride % 4 == 0 &&
                       fits(r.gate) && fits(r.up) && fits(r.y) && fits(r.d_y) && fits(r.d_gate) &&
                       fits(r.d_up);
  if (vectors) {
    launch<T, 4, BACKWARD>(r, stream);
  } else {
    launch<T, 1, BACKWARD>(r, stream);
  }
}

}  // namespace

template <class T>
void gated_rows_cuda(const GatedRows<T>& r, CUstream_st* stream) {
  run<T, false>(r, stream);
}
template <class T>
void gated_rows_backward_cuda(const GatedRows<T>& r, CUstream_st* stream) {
  run<T, true>(r, stream);
}

template void gated_rows_cuda(const GatedRows<float>&, CUstream_st*);
template void gated_rows_cuda(const GatedRows<Bf16>&, CUstream_st*);
template void gated_rows_backward_cuda(const GatedRows<float>&, CUstream_st*);
template void gated_rows_backward_cuda(const GatedRows<Bf16>&, CUstream_st*);

}  // namespace mgm::kernels
