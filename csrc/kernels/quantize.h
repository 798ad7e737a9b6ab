// Matrices in fewer bits and back, weights only.
//   NF4: 4-bit NormalFloat (QLoRA, arXiv 2305.14314). The matrix's elements in order, in blocks of
//     64: code = nearest of 16 values to x / max|x| of the block. Double quantisation: the maxima
//     less their mean, in blocks of 256 to the 8-bit dynamic map of arXiv 1511.04561. Rounding,
//     table and order of nibbles are bitsandbytes' (functional.quantize_4bit); its map of maxima
//     differs from ours, which is correctly rounded, by at most one unit in the last place.
//   int8: row by row, code = round(x 127 / max|x|), halves to even; x = code max|x| / 127.
// CPU and CUDA give the same bits.
#pragma once

#include <cstdint>

#include "base/philox.h"
#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

inline constexpr int64_t kNf4Block = 64;           // elements of one maximum
inline constexpr int64_t kMaximaBlock = 256;       // maxima of one scale
inline constexpr float kLeastMaximum = 1e-38f;     // NF4: a block below it is a block of zeros
inline constexpr float kLeastRowMaximum = 1e-30f;  // int8: the same of a row

template <int N>
struct ValueTable {
  float v[N];
};

// What the codes of NF4 mean, ascending: quantiles of N(0, 1) scaled to [-1, 1], 0 among them.
inline constexpr ValueTable<16> kNf4Values = {
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
     -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
     0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
     0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f}};

// What the codes of maxima mean, ascending: with exponent e in 0..6 the 2^e middles of equal parts
// of [0.1, 1], times 10^(e - 6), of either sign; 0; 1.
constexpr ValueTable<256> make_maxima_values() {
  constexpr double kPower[7] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  ValueTable<256> out{};
  int above = 128;  // 127 is 0
  for (int e = 0; e < 7; ++e) {
    const int count = 1 << e;
    for (int k = 0; k < count; ++k, ++above) {
      out.v[above] = static_cast<float>((0.1 + 0.9 * (k + 0.5) / count) * kPower[e]);
      out.v[254 - above] = -out.v[above];
    }
  }
  out.v[255] = 1;
  return out;
}
inline constexpr ValueTable<256> kMaximaValues = make_maxima_values();

// Between neighbours; a value on a bound takes the lower code.
template <int N>
constexpr ValueTable<N - 1> bounds_of(const ValueTable<N>& values) {
  ValueTable<N - 1> out{};
  for (int i = 0; i + 1 < N; ++i) out.v[i] = (values.v[i] + values.v[i + 1]) / 2;
  return out;
}
inline constexpr ValueTable<15> kNf4Bounds = bounds_of(kNf4Values);

MGM_HOST_DEVICE inline int nf4_code(float scaled, const float* bounds15) {
  int code = 0;
  for (int i = 0; i < 15; ++i) code += bounds15[i] < scaled;
  return code;
}

// T is float or Bf16.
template <class T>
struct Nf4Quantize {
  int64_t n = 0;
  const T* x = nullptr;      // [n]
  uint8_t* codes = nullptr;  // [ceil(n / 2)]: element 2 i in the upper half of byte i
  float* maxima = nullptr;   // [ceil(n / 64)]
};

// The second level of n maxima.
struct MaximaQuantize {
  int64_t n = 0;
  const float* maxima = nullptr;
  uint8_t* codes = nullptr;  // [n]
  float* scales = nullptr;   // [ceil(n / 256)]
};

template <class T>
struct Nf4Dequantize {
  int64_t n = 0;
  const uint8_t* codes = nullptr;
  const uint8_t* maxima = nullptr;  // codes
  const float* scales = nullptr;
  float offset = 0;
  T* x = nullptr;
};

template <class T>
struct Int8Quantize {
  int64_t rows = 0, width = 0;
  const T* x = nullptr;
  int8_t* codes = nullptr;  // [rows, width]
  float* scales = nullptr;  // [rows]: max|x| / 127
};

template <class T>
struct Int8Dequantize {
  int64_t rows = 0, width = 0;
  const int8_t* codes = nullptr;
  const float* scales = nullptr;
  T* x = nullptr;
};

template <class T>
void quantize_nf4_cpu(const Nf4Quantize<T>& q, const ParallelFor& parallel);
// Returns the offset, the maxima's mean. On the CPU alone: there are few of them.
float quantize_maxima_cpu(const MaximaQuantize& q);
template <class T>
void dequantize_nf4_cpu(const Nf4Dequantize<T>& q, const ParallelFor& parallel);
template <class T>
void quantize_int8_cpu(const Int8Quantize<T>& q, const ParallelFor& parallel);
template <class T>
void dequantize_int8_cpu(const Int8Dequantize<T>& q, const ParallelFor& parallel);

// Asynchronous on `stream`. Buffers of codes, and x of dequantize, begin at multiples of 16 bytes.
template <class T>
void quantize_nf4_cuda(const Nf4Quantize<T>& q, CUstream_st* stream);
template <class T>
void dequantize_nf4_cuda(const Nf4Dequantize<T>& q, CUstream_st* stream);
template <class T>
void quantize_int8_cuda(const Int8Quantize<T>& q, CUstream_st* stream);
template <class T>
void dequantize_int8_cuda(const Int8Dequantize<T>& q, CUstream_st* stream);

}  // namespace mgm::kernels
