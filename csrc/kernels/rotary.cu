#include "kernels/cuda_common.cuh"
#include "kernels/rotary.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 128;

// A block does a row. A thread does VEC pairs of a head, or copies VEC numbers behind them.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const RotaryRows<T> r) {
  const int half = r.rotated / 2, pairs = half / VEC;
  const int units = pairs + (r.width - r.rotated) / VEC;
  const T* cos = r.cos + blockIdx.x * static_cast<int64_t>(r.rotated);
  const T* sin = r.sin + blockIdx.x * static_cast<int64_t>(r.rotated);
  const float sign = r.backward ? -1.0f : 1.0f;
  for (int i = threadIdx.x; i < (r.q.heads + r.k.heads) * units; i += kThreads) {
    const int unit = i % units;
    int head = i / units;
    const bool is_q = head < r.q.heads;
    if (!is_q) head -= r.q.heads;
    const RotaryHeads<T>& of = is_q ? r.q : r.k;
    const T* x = of.x + blockIdx.x * of.row_stride + head * r.width;
    T* y = of.y + (blockIdx.x * static_cast<int64_t>(of.heads) + head) * r.width;
    if (unit >= pairs) {
      const int at = r.rotated + (unit - pairs) * VEC;
      store<VEC>(load<VEC>(x + at), y + at);
      continue;
    }
    const int at = unit * VEC;
    const Floats<VEC> x1 = load<VEC>(x + at), x2 = load<VEC>(x + half + at);
    const Floats<VEC> c = load<VEC>(cos + at), s = load<VEC>(sin + at);
    Floats<VEC> y1, y2;
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
      // __fmul_rn: never fused with the addition, so that float, too, has the bits of two steps.
      const float sine = sign * s.v[k];
      y1.v[k] = rounded(__fmul_rn(x1.v[k], c.v[k]), cos) - rounded(__fmul_rn(x2.v[k], sine), cos);
      y2.v[k] = rounded(__fmul_rn(x2.v[k], c.v[k]), cos) + rounded(__fmul_rn(x1.v[k], sine), cos);
    }
    store<VEC>(y1, y + at);
    store<VEC>(y2, y + half + at);
  }
}

template <class T>
bool takes_vectors(const RotaryRows<T>& r) {
  const auto fits = [](const RotaryHeads<T>& of) {
    return of.row_stride % 4 == 0 && aligned(of.x, 4 * sizeof(T)) && aligned(of.y, 4 * sizeof(T));
  };
  return r.rotated % 8 == 0 && r.width % 4 == 0 && aligned(r.cos, 4 * sizeof(T)) &&
         aligned(r.sin, 4 * sizeof(T)) && fits(r.q) && fits(r.k);
}

}  // namespace

template <class T>
void rotate_rows_cuda(const RotaryRows<T>& r, CUstream_st* stream) {
  if (r.rows == 0 || r.width == 0) return;
  const auto blocks = static_cast<unsigned>(r.rows);
  if (takes_vectors(r)) {
    rotary_kernel<T, 4><<<blocks, kThreads, 0, stream>>>(r);
  } else {
    rotary_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(r);
  }
  check_cuda(cudaGetLastError(), "rotary embedding");
}

template void rotate_rows_cuda(const RotaryRows<float>&, CUstream_st*);
template void rotate_rows_cuda(const RotaryRows<Bf16>&, CUstream_st*);

}  // namespace mgm::kernels
