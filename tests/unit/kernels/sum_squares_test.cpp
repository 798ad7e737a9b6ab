#include "kernels/sum_squares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace mgm::kernels {
namespace {

TEST(SumSquares, EqualsTheDefinitionForEveryLength) {
  for (const size_t n : {0, 1, 3, 4, 5, 16383, 16384, 16385, 100003}) {
    std::vector<float> x(n);
    fill_normal(x.data(), n, 5, 0, 0.1, 3);
    std::vector<Bf16> y(n);
    long double exact = 0, exact_half = 0;
    for (size_t i = 0; i < n; ++i) {
      y[i] = to_bf16(x[i]);
      exact += static_cast<long double>(x[i]) * x[i];
      exact_half += static_cast<long double>(to_float(y[i])) * to_float(y[i]);
    }
    const auto count = static_cast<int64_t>(n);
    const double sum = sum_squares_cpu(x.data(), count, serial_for);
    EXPECT_NEAR(sum, static_cast<double>(exact), 1e-14 * static_cast<double>(exact));
    EXPECT_NEAR(sum_squares_cpu(y.data(), count, serial_for), static_cast<double>(exact_half),
                1e-14 * static_cast<double>(exact_half));
    // Back to front, one chunk at a time: the same bits.
    const auto backwards = [](int64_t chunks, int64_t, const RangeBody& body) {
      for (int64_t i = chunks; i-- > 0;) body(i, i + 1);
    };
    EXPECT_EQ(sum_squares_cpu(x.data(), count, backwards), sum);
  }
}

TEST(SumSquares, ThreadsGetShares) {
  const std::vector<float> x(4 << 20, 1.0f);
  int64_t shares = 0;
  sum_squares_cpu(x.data(), 4 << 20,
                  [&](int64_t n, int64_t grain, const RangeBody&) { shares = n / grain; });
  EXPECT_GE(shares, 64);
}

TEST(SumSquares, FiniteExactlyWhenEveryElementIs) {
  std::vector<float> x(50000, std::numeric_limits<float>::max());
  EXPECT_TRUE(std::isfinite(sum_squares_cpu(x.data(), 50000, serial_for)));
  for (const size_t at : {0, 16384, 49999}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> y(50000, 1.0f);
      y[at] = bad;
      EXPECT_FALSE(std::isfinite(sum_squares_cpu(y.data(), 50000, serial_for)));
    }
  }
}

}  // namespace
}  // namespace mgm::kernels
