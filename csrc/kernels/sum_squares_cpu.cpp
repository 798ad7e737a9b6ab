#include <algorithm>
#include <vector>

#include "kernels/sum_squares.h"
#include "kernels/vec.h"

namespace mgm::kernels {
namespace {

template <class T>
double chunk_sum(const T* x, int64_t n) {
  vec::Doubles lanes{};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const vec::Doubles v = {as_real(x[i]), as_real(x[i + 1]), as_real(x[i + 2]), as_real(x[i + 3])};
    lanes += v * v;
  }
  double total = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  for (; i < n; ++i) total += static_cast<double>(as_real(x[i])) * as_real(x[i]);
  return total;
}

}  // namespace

template <class T>
double sum_squares_cpu(const T* x, int64_t n, const ParallelFor& parallel) {
  constexpr int64_t kChunk = 16384;
  std::vector<double> sums(static_cast<size_t>((n + kChunk - 1) / kChunk));
  parallel(static_cast<int64_t>(sums.size()), /*grain=*/4, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      sums[static_cast<size_t>(c)] = chunk_sum(x + c * kChunk, std::min(kChunk, n - c * kChunk));
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

template double sum_squares_cpu(const float*, int64_t, const ParallelFor&);
template double sum_squares_cpu(const Bf16*, int64_t, const ParallelFor&);

}  // namespace mgm::kernels
