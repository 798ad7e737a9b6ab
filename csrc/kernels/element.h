// Element types of kernels: float, double and bfloat16 as storage (the upper half of a float,
// rounded to nearest even), and the type each computes in.
#pragma once

#include <bit>
#include <cstdint>

namespace mgm::kernels {

struct Bf16 {
  uint16_t bits;
};

inline float to_float(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline Bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x)
    return {static_cast<uint16_t>((bits >> 16) | 0x40)};  // rounding could turn NaN to inf
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <class T>
struct RealOf {
  using type = T;
};
template <>
struct RealOf<Bf16> {
  using type = float;
};
template <class T>
using Real = typename RealOf<T>::type;  // what an element type computes in

inline float as_real(float x) { return x; }
inline double as_real(double x) { return x; }
inline float as_real(Bf16 x) { return to_float(x); }
inline void store_real(float x, float* out) { *out = x; }
inline void store_real(double x, double* out) { *out = x; }
inline void store_real(float x, Bf16* out) { *out = to_bf16(x); }

}  // namespace mgm::kernels
