// Sums over channel vectors with a fixed order: eight (four, for double) running sums side by side,
// then one by one. The compiler may not reorder float sums, so the lanes are written out (GNU
// vector extension); results do not depend on threads or alignment.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/element.h"

namespace mgm::kernels {

namespace vec {

typedef float Floats __attribute__((vector_size(32)));
typedef double Doubles __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(32)));

inline Floats load(const float* p) {
  Floats x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Doubles load(const double* p) {
  Doubles x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Floats load(const Bf16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  const Words w = __builtin_convertvector(h, Words) << 16;
  return std::bit_cast<Floats>(w);
}
inline void store(const Floats& x, Bf16* p) {  // to_bf16 of each
  const Words bits = std::bit_cast<Words>(x);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  const Halves h = __builtin_convertvector(x == x ? rounded : nan, Halves);
  std::memcpy(p, &h, sizeof h);
}
template <class V, class R>
void store(const V& x, R* p) {
  std::memcpy(p, &x, sizeof x);
}

template <class R>
using Pack = decltype(load(static_cast<const R*>(nullptr)));
template <class R>
inline constexpr int64_t kLanes = 32 / sizeof(R);

// The sum over i of term(i, one pack) for whole packs, of term(i, one element) for the rest; two
// chains hide the latency of the addition.
template <class R, class PackTerm, class Term>
R reduce(int64_t n, const PackTerm& pack_term, const Term& term) {
  constexpr int64_t kStep = kLanes<R>;
  Pack<R> even{}, odd{};
  int64_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    even += pack_term(i);
    odd += pack_term(i + kStep);
  }
  if (i + kStep <= n) {
    even += pack_term(i);
    i += kStep;
  }
  even += odd;
  R total = 0;
  for (int64_t lane = 0; lane < kStep; ++lane) total += even[lane];
  for (; i < n; ++i) total += term(i);
  return total;
}

template <class T>
Real<T> sum(const T* x, int64_t n) {
  return reduce<Real<T>>(
      n, [&](int64_t i) { return load(x + i); }, [&](int64_t i) { return as_real(x[i]); });
}

template <class T>
Real<T> dot(const T* x, const Real<T>* y, int64_t n) {
  return reduce<Real<T>>(
      n, [&](int64_t i) { return load(x + i) * load(y + i); },
      [&](int64_t i) { return as_real(x[i]) * y[i]; });
}

// sum (x - mean_x) (y - mean_y)
template <class T>
Real<T> centred_dot(const T* x, Real<T> mean_x, const T* y, Real<T> mean_y, int64_t n) {
  return reduce<Real<T>>(
      n, [&](int64_t i) { return (load(x + i) - mean_x) * (load(y + i) - mean_y); },
      [&](int64_t i) { return (as_real(x[i]) - mean_x) * (as_real(y[i]) - mean_y); });
}

// out += scale * x
template <class T>
void add_scaled(Real<T> scale, const T* x, Real<T>* out, int64_t n) {
  constexpr int64_t kStep = kLanes<Real<T>>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) store(load(out + i) + load(x + i) * scale, out + i);
  for (; i < n; ++i) out[i] += as_real(x[i]) * scale;
}

}  // namespace vec
}  // namespace mgm::kernels
