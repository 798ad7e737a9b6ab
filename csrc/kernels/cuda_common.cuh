// What our .cu files share: launch checks, warp and block sums in a fixed order, vector loads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "base/error.h"
#include "kernels/element.h"

namespace mgm::kernels {

inline void check_cuda(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw InternalError("CUDA: ", what, ": ", cudaGetErrorString(status));
  }
}

// More than 48 KiB of dynamic shared memory has to be asked for.
template <class Kernel>
void allow_shared_memory(Kernel kernel, size_t bytes, const char* what) {
  if (bytes <= 48 * 1024) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             what);
}

inline constexpr int kWarp = 32;

__device__ inline float warp_sum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  }
  return x;
}

// VEC consecutive elements as floats. VEC 4 needs addresses aligned to four elements.
template <int VEC>
struct Floats {
  float v[VEC];
};

template <int VEC>
__device__ inline Floats<VEC> load(const float* p) {
  Floats<VEC> out;
  if constexpr (VEC == 4) {
    const float4 x = *reinterpret_cast<const float4*>(p);
    out.v[0] = x.x, out.v[1] = x.y, out.v[2] = x.z, out.v[3] = x.w;
  } else {
    static_assert(VEC == 1);
    out.v[0] = *p;
  }
  return out;
}

template <int VEC>
__device__ inline Floats<VEC> load(const Bf16* p) {
  Floats<VEC> out;
  if constexpr (VEC == 4) {
    const uint2 x = *reinterpret_cast<const uint2*>(p);
    out.v[0] = __uint_as_float(x.x << 16), out.v[1] = __uint_as_float(x.x & 0xffff0000u);
    out.v[2] = __uint_as_float(x.y << 16), out.v[3] = __uint_as_float(x.y & 0xffff0000u);
  } else {
    static_assert(VEC == 1);
    out.v[0] = __uint_as_float(static_cast<uint32_t>(p->bits) << 16);
  }
  return out;
}

template <int VEC>
__device__ inline void store(const Floats<VEC>& x, float* p) {
  if constexpr (VEC == 4) {
    *reinterpret_cast<float4*>(p) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  } else {
    *p = x.v[0];
  }
}

__device__ inline uint16_t bf16_bits(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <int VEC>
__device__ inline void store(const Floats<VEC>& x, Bf16* p) {
  if constexpr (VEC == 4) {
    const uint32_t low = bf16_bits(x.v[0]) | static_cast<uint32_t>(bf16_bits(x.v[1])) << 16;
    const uint32_t high = bf16_bits(x.v[2]) | static_cast<uint32_t>(bf16_bits(x.v[3])) << 16;
    *reinterpret_cast<uint2*>(p) = make_uint2(low, high);
  } else {
    p->bits = bf16_bits(x.v[0]);
  }
}

// What is left of a result that is stored in the element type of `p`.
__device__ inline float rounded(float x, const float*) { return x; }
__device__ inline float rounded(float x, const Bf16*) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

inline bool aligned(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

}  // namespace mgm::kernels
