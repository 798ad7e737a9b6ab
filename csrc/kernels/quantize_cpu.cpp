#include <algorithm>
#include <cmath>

#include "kernels/quantize.h"

namespace mgm::kernels {
namespace {

constexpr int64_t kGrain = 16;  // rows or blocks of 64

constexpr ValueTable<255> kMaximaBounds = bounds_of(kMaximaValues);

template <class T>
float largest(const T* x, int64_t n) {
  float out = 0;
  for (int64_t i = 0; i < n; ++i) out = std::max(out, std::abs(as_real(x[i])));
  return out;
}

int64_t blocks_of(int64_t n, int64_t block) { return (n + block - 1) / block; }

}  // namespace

template <class T>
void quantize_nf4_cpu(const Nf4Quantize<T>& q, const ParallelFor& parallel) {
  parallel(blocks_of(q.n, kNf4Block), kGrain, [&](int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t begin = block * kNf4Block, end = std::min(q.n, begin + kNf4Block);
      const float maximum = largest(q.x + begin, end - begin);
      const float factor = 1.0f / std::max(maximum, kLeastMaximum);
      q.maxima[block] = maximum;
      const auto code = [&](int64_t i) {  // behind the end: of 0
        return nf4_code(i < end ? as_real(q.x[i]) * factor : 0.0f, kNf4Bounds.v);
      };
      for (int64_t i = begin; i < end; i += 2) {
        q.codes[i / 2] = static_cast<uint8_t>(code(i) << 4 | code(i + 1));
      }
    }
  });
}

float quantize_maxima_cpu(const MaximaQuantize& q) {
  double sum = 0;
  for (int64_t i = 0; i < q.n; ++i) sum += double(q.maxima[i]);
  const float offset = q.n > 0 ? static_cast<float>(sum / double(q.n)) : 0.0f;
  for (int64_t begin = 0; begin < q.n; begin += kMaximaBlock) {
    const int64_t end = std::min(q.n, begin + kMaximaBlock);
    float scale = 0;
    for (int64_t i = begin; i < end; ++i) scale = std::max(scale, std::abs(q.maxima[i] - offset));
    q.scales[begin / kMaximaBlock] = scale;
    const float factor = 1.0f / std::max(scale, kLeastMaximum);
    for (int64_t i = begin; i < end; ++i) {
      const float scaled = (q.maxima[i] - offset) * factor;
      const float* bound =
          std::lower_bound(std::begin(kMaximaBounds.v), std::end(kMaximaBounds.v), scaled);
      q.codes[i] = static_cast<uint8_t>(bound - kMaximaBounds.v);
    }
  }
  return offset;
}

template <class T>
void dequantize_nf4_cpu(const Nf4Dequantize<T>& q, const ParallelFor& parallel) {
  parallel(blocks_of(q.n, kNf4Block), kGrain, [&](int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const float maximum =
          kMaximaValues.v[q.maxima[block]] * q.scales[block / kMaximaBlock] + q.offset;
      const int64_t begin = block * kNf4Block, end = std::min(q.n, begin + kNf4Block);
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t byte = q.codes[i / 2];
        store_real(kNf4Values.v[i % 2 == 0 ? byte >> 4 : byte & 15] * maximum, q.x + i);
      }
    }
  });
}

template <class T>
void quantize_int8_cpu(const Int8Quantize<T>& q, const ParallelFor& parallel) {
  parallel(q.rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = q.x + row * q.width;
      const float maximum = largest(x, q.width);
      const float factor = 127.0f / std::max(maximum, kLeastRowMaximum);
      q.scales[row] = maximum / 127.0f;
      int8_t* codes = q.codes + row * q.width;
      for (int64_t i = 0; i < q.width; ++i) {
        codes[i] = static_cast<int8_t>(std::nearbyint(as_real(x[i]) * factor));
      }
    }
  });
}

template <class T>
void dequantize_int8_cpu(const Int8Dequantize<T>& q, const ParallelFor& parallel) {
  parallel(q.rows, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = row * q.width; i < (row + 1) * q.width; ++i) {
        store_real(static_cast<float>(q.codes[i]) * q.scales[row], q.x + i);
      }
    }
  });
}

#define MGM_QUANTIZE_OF(T)                                                       \
  template void quantize_nf4_cpu(const Nf4Quantize<T>&, const ParallelFor&);     \
  template void dequantize_nf4_cpu(const Nf4Dequantize<T>&, const ParallelFor&); \
  template void quantize_int8_cpu(const Int8Quantize<T>&, const ParallelFor&);   \
  template void dequantize_int8_cpu(const Int8Dequantize<T>&, const ParallelFor&)
MGM_QUANTIZE_OF(float);
MGM_QUANTIZE_OF(Bf16);
#undef MGM_QUANTIZE_OF

}  // namespace mgm::kernels
