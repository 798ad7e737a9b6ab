#include "kernels/cuda_common.cuh"
#include "kernels/quantize.h"

namespace mgm::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kChunk = 8;  // elements a thread dequantises at a time: four bytes of codes

__constant__ const ValueTable<16> c_nf4_values = kNf4Values;
__constant__ const ValueTable<15> c_nf4_bounds = kNf4Bounds;
__constant__ const ValueTable<256> c_maxima_values = kMaximaValues;

// A warp does a block: two neighbours, one byte, per lane.
template <class T>
__global__ void __launch_bounds__(kThreads) quantize_nf4_kernel(const Nf4Quantize<T> q) {
  static_assert(kNf4Block == 2 * kWarp);
  const int lane = threadIdx.x % kWarp;
  const int64_t blocks = (q.n + kNf4Block - 1) / kNf4Block;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t block = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
       block < blocks; block += stride) {
    const int64_t i = block * kNf4Block + 2 * lane;
    const float a = i < q.n ? load<1>(q.x + i).v[0] : 0.0f;
    const float b = i + 1 < q.n ? load<1>(q.x + i + 1).v[0] : 0.0f;
    const float maximum = warp_max(fmaxf(fabsf(a), fabsf(b)));
    const float factor = __fdiv_rn(1.0f, fmaxf(maximum, kLeastMaximum));
    if (i < q.n) {
      q.codes[i / 2] = static_cast<uint8_t>(nf4_code(__fmul_rn(a, factor), c_nf4_bounds.v) << 4 |
                                            nf4_code(__fmul_rn(b, factor), c_nf4_bounds.v));
    }
    if (lane == 0) q.maxima[block] = maximum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) dequantize_nf4_kernel(const Nf4Dequantize<T> q) {
  // Lanes read different entries, which constant memory would serve one by one.
  __shared__ float values[16], maxima[256];
  static_assert(kThreads >= 256);
  if (threadIdx.x < 16) values[threadIdx.x] = c_nf4_values.v[threadIdx.x];
  if (threadIdx.x < 256) maxima[threadIdx.x] = c_maxima_values.v[threadIdx.x];
  __syncthreads();
  const int64_t chunks = (q.n + kChunk - 1) / kChunk;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t chunk = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; chunk < chunks;
       chunk += stride) {
    const int64_t first = chunk * kChunk, block = first / kNf4Block;
    // Not contracted to an FMA: the CPU's bits.
    const float maximum =
        __fadd_rn(__fmul_rn(maxima[q.maxima[block]], q.scales[block / kMaximaBlock]), q.offset);
    if (first + kChunk <= q.n) {
      const uint32_t bytes = reinterpret_cast<const uint32_t*>(q.codes)[chunk];
#pragma unroll
      for (int half = 0; half < kChunk; half += 4) {
        Floats<4> y;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int shift = 8 * ((half + k) / 2) + (k % 2 == 0 ? 4 : 0);
          y.v[k] = values[bytes >> shift & 15] * maximum;
        }
        store<4>(y, q.x + first + half);
      }
    } else {
      for (int64_t i = first; i < q.n; ++i) {
        const int byte = q.codes[i / 2];
        store<1>(Floats<1>{{values[i % 2 == 0 ? byte >> 4 : byte & 15] * maximum}}, q.x + i);
      }
    }
  }
}

// A warp does a row.
template <class T>
__global__ void __launch_bounds__(kThreads) quantize_int8_kernel(const Int8Quantize<T> q) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < q.rows;
       row += stride) {
    const T* x = q.x + row * q.width;
    float maximum = 0;
    for (int64_t i = lane; i < q.width; i += kWarp) {
      maximum = fmaxf(maximum, fabsf(load<1>(x + i).v[0]));
    }
    maximum = warp_max(maximum);
    const float factor = __fdiv_rn(127.0f, fmaxf(maximum, kLeastRowMaximum));
    for (int64_t i = lane; i < q.width; i += kWarp) {
      q.codes[row * q.width + i] =
          static_cast<int8_t>(__float2int_rn(__fmul_rn(load<1>(x + i).v[0], factor)));
    }
    if (lane == 0) q.scales[row] = __fdiv_rn(maximum, 127.0f);
  }
}

// VEC 4: the width divides by four.
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads) dequantize_int8_kernel(const Int8Dequantize<T> q) {
  const int64_t packs = q.rows * q.width / VEC;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; pack < packs;
       pack += stride) {
    const float scale = q.scales[pack * VEC / q.width];
    Floats<VEC> y;
    if constexpr (VEC == 4) {
      const char4 codes = reinterpret_cast<const char4*>(q.codes)[pack];
      y.v[0] = static_cast<float>(codes.x) * scale, y.v[1] = static_cast<float>(codes.y) * scale;
      y.v[2] = static_cast<float>(codes.z) * scale, y.v[3] = static_cast<float>(codes.w) * scale;
    } else {
      y.v[0] = static_cast<float>(q.codes[pack]) * scale;
    }
    store<VEC>(y, q.x + pack * VEC);
  }
}

// Thread blocks for `work` units of which one does `each`.
unsigned grid(int64_t work, int64_t each) {
  return static_cast<unsigned>(min((work + each - 1) / each, int64_t{1} << 16));
}

}  // namespace

template <class T>
void quantize_nf4_cuda(const Nf4Quantize<T>& q, CUstream_st* stream) {
  if (q.n == 0) return;
  quantize_nf4_kernel<T><<<grid(q.n, kNf4Block * kWarps), kThreads, 0, stream>>>(q);
  check_cuda(cudaGetLastError(), "quantize nf4");
}

template <class T>
void dequantize_nf4_cuda(const Nf4Dequantize<T>& q, CUstream_st* stream) {
  if (q.n == 0) return;
  dequantize_nf4_kernel<T><<<grid(q.n, kChunk * kThreads), kThreads, 0, stream>>>(q);
  check_cuda(cudaGetLastError(), "dequantize nf4");
}

template <class T>
void quantize_int8_cuda(const Int8Quantize<T>& q, CUstream_st* stream) {
  if (q.rows == 0) return;
  quantize_int8_kernel<T><<<grid(q.rows, kWarps), kThreads, 0, stream>>>(q);
  check_cuda(cudaGetLastError(), "quantize int8");
}

template <class T>
void dequantize_int8_cuda(const Int8Dequantize<T>& q, CUstream_st* stream) {
  const int64_t n = q.rows * q.width;
  if (n == 0) return;
  if (q.width % 4 == 0) {
    dequantize_int8_kernel<T, 4><<<grid(n, 4 * kThreads), kThreads, 0, stream>>>(q);
  } else {
    dequantize_int8_kernel<T, 1><<<grid(n, kThreads), kThreads, 0, stream>>>(q);
  }
  check_cuda(cudaGetLastError(), "dequantize int8");
}

#define MGM_QUANTIZE_OF(T)                                                  \
  template void quantize_nf4_cuda(const Nf4Quantize<T>&, CUstream_st*);     \
  template void dequantize_nf4_cuda(const Nf4Dequantize<T>&, CUstream_st*); \
  template void quantize_int8_cuda(const Int8Quantize<T>&, CUstream_st*);   \
  template void dequantize_int8_cuda(const Int8Dequantize<T>&, CUstream_st*)
MGM_QUANTIZE_OF(float);
MGM_QUANTIZE_OF(Bf16);
#undef MGM_QUANTIZE_OF

}  // namespace mgm::kernels
