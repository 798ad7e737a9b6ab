#include "kernels/cuda_common.cuh"
#include "kernels/dropout.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256;

// A thread does four columns of a row. VEC 4: the width divides by four and rows are aligned.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const DropoutRows<T> r, uint32_t threshold, float scale) {
  const int64_t quads = (r.width + 3) / 4;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < r.rows * quads;
       i += stride) {
    const int64_t row = i / quads, quad = i % quads;
    const PhiloxBlock block = dropout_block(r.key, r.sample[row], r.position[row], quad);
    const int64_t first = row * r.width + 4 * quad;
#pragma unroll
    for (int k = 0; k < 4; k += VEC) {
      if (VEC == 1 && 4 * quad + k >= r.width) break;
      Floats<VEC> x = load<VEC>(r.x + first + k);
#pragma unroll
      for (int lane = 0; lane < VEC; ++lane) {
        x.v[lane] = block.v[k + lane] < threshold ? 0.0f : x.v[lane] * scale;
      }
      store<VEC>(x, r.y + first + k);
    }
  }
}

template <class T, int VEC>
void launch(const DropoutRows<T>& r, cudaStream_t stream) {
  const int64_t blocks = (r.rows * ((r.width + 3) / 4) + kThreads - 1) / kThreads;
  dropout_kernel<T, VEC>
      <<<static_cast<unsigned>(min(blocks, int64_t{1} << 16)), kThreads, 0, stream>>>(
          r, dropout_threshold(r.p), static_cast<float>(1 / (1 - r.p)));
  check_cuda(cudaGetLastError(), "dropout");
}

}  // namespace

template <class T>
void dropout_rows_cuda(const DropoutRows<T>& r, CUstream_st* stream) {
  if (r.rows == 0 || r.width == 0) return;
  if (r.width % 4 == 0 && aligned(r.x, 4 * sizeof(T)) && aligned(r.y, 4 * sizeof(T))) {
    launch<T, 4>(r, stream);
  } else {
    launch<T, 1>(r, stream);
  }
}

template void dropout_rows_cuda(const DropoutRows<float>&, CUstream_st*);
template void dropout_rows_cuda(const DropoutRows<Bf16>&, CUstream_st*);

}  // namespace mgm::kernels
