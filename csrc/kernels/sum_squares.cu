#include "kernels/cuda_common.cuh"
#include "kernels/sum_squares.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256;

__device__ double block_sum(double x) {
  __shared__ double warps[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  double total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) total += warps[i];
  return total;
}

// The grid is a constant, so which thread adds what depends on n alone.
template <class T, int VEC>
__global__ void partial_sums(const T* x, int64_t n, double* partial) {
  double sum = 0;
  const int64_t stride = static_cast<int64_t>(kSumSquaresScratch) * kThreads * VEC;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * VEC; i < n;
       i += stride) {
    const Floats<VEC> v = load<VEC>(x + i);
#pragma unroll
    for (int k = 0; k < VEC; ++k) sum += static_cast<double>(v.v[k]) * v.v[k];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void final_sum(const double* partial, double* out) {
  double sum = 0;
  for (int i = threadIdx.x; i < kSumSquaresScratch; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

template <class T>
void sum_squares_cuda(const T* x, int64_t n, double* scratch, double* out, CUstream_st* stream) {
  if (n % 4 == 0 && aligned(x, 4 * sizeof(T))) {
    partial_sums<T, 4><<<kSumSquaresScratch, kThreads, 0, stream>>>(x, n, scratch);
  } else {
    partial_sums<T, 1><<<kSumSquaresScratch, kThreads, 0, stream>>>(x, n, scratch);
  }
  final_sum<<<1, kThreads, 0, stream>>>(scratch, out);
  check_cuda(cudaGetLastError(), "sum of squares");
}

template void sum_squares_cuda(const float*, int64_t, double*, double*, CUstream_st*);
template void sum_squares_cuda(const Bf16*, int64_t, double*, double*, CUstream_st*);

}  // namespace mgm::kernels
