#include <cmath>
#include <limits>
#include <vector>

#include "kernels/decode_attention.h"
#include "kernels/vec.h"

namespace mgm::kernels {
namespace {

template <class T>
void attend(const DecodeAttention<T>& a, int64_t row, int64_t head, std::vector<float>& buffer) {
  const KeyRange seen = seen_keys(a.positions[row], a.window);
  const int64_t count = seen.end - seen.begin, kv_head = head / (a.heads / a.kv_heads);
  const int64_t stride = a.kv_heads * a.width;
  const int64_t first = (row * a.capacity + seen.begin) * stride + kv_head * a.width;
  buffer.resize(static_cast<size_t>(2 * a.width + count));
  float *q = buffer.data(), *sum = q + a.width, *p = sum + a.width;
  const T* query = a.q + (row * a.heads + head) * a.width;
  for (int64_t i = 0; i < a.width; ++i) {
    q[i] = as_real(query[i]) * a.scale;
    sum[i] = 0;
  }
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < count; ++j) {
    p[j] = vec::dot(a.k + first + j * stride, q, a.width);
    if (a.softcap > 0) p[j] = a.softcap * std::tanh(p[j] / a.softcap);
    top = std::max(top, p[j]);
  }
  float total = 0;
  for (int64_t j = 0; j < count; ++j) {
    p[j] = std::exp(p[j] - top);
    total += p[j];
    vec::add_scaled(p[j], a.v + first + j * stride, sum, a.width);
  }
  T* out = a.out + (row * a.heads + head) * a.width;
  for (int64_t i = 0; i < a.width; ++i) store_real(sum[i] / total, out + i);
}

}  // namespace

template <class T>
void decode_attention_cpu(const DecodeAttention<T>& a, const ParallelFor& parallel) {
  parallel(a.rows * a.heads, /*grain=*/1, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer;
    for (int64_t i = begin; i < end; ++i) attend(a, i / a.heads, i % a.heads, buffer);
  });
}

template void decode_attention_cpu(const DecodeAttention<float>&, const ParallelFor&);
template void decode_attention_cpu(const DecodeAttention<Bf16>&, const ParallelFor&);

}  // namespace mgm::kernels
