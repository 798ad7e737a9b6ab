#include "kernels/vec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace mgm::kernels {
namespace {

TEST(Bf16, RoundsToNearestEven) {
  const auto round_trip = [](float x) { return to_float(to_bf16(x)); };
  EXPECT_EQ(round_trip(1.0f), 1.0f);
  EXPECT_EQ(round_trip(1.0f + 1.0f / 256), 1.0f);               // tie, to even
  EXPECT_EQ(round_trip(1.0f + 3.0f / 256), 1.0f + 4.0f / 256);  // tie, to even
  EXPECT_EQ(round_trip(1.0f + 1.1f / 256), 1.0f + 2.0f / 256);
  EXPECT_EQ(round_trip(-0.0f), 0.0f);
  EXPECT_TRUE(std::signbit(round_trip(-0.0f)));
  EXPECT_EQ(round_trip(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_EQ(round_trip(-INFINITY), -INFINITY);
  EXPECT_TRUE(std::isnan(round_trip(NAN)));
  EXPECT_TRUE(
      std::isnan(round_trip(std::bit_cast<float>(0x7f800001u))));  // payload in the low half
}

TEST(Bf16, EightAtOnceAreTheSameBits) {
  // Every upper half with low halves around the tie: all signs, exponents, NaN and infinities.
  for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
    for (uint32_t high = 0; high < 0x10000; high += 8) {
      vec::Floats x;
      Bf16 out[8];
      for (uint32_t i = 0; i < 8; ++i) x[i] = std::bit_cast<float>((high + i) << 16 | low);
      vec::store(x, out);
      for (uint32_t i = 0; i < 8; ++i)
        ASSERT_EQ(out[i].bits, to_bf16(x[i]).bits) << high + i << low;
    }
  }
}

template <class T>
void check_sums(double tolerance) {
  for (const size_t n : {0, 1, 3, 7, 8, 9, 16, 17, 31, 64, 101, 2880}) {
    std::vector<float> a(n), b(n);
    fill_normal(a.data(), n, 1, 0, 0.5, 1);
    fill_normal(b.data(), n, 2, 0, 0, 1);
    std::vector<T> x(n);
    std::vector<Real<T>> y(n), out(n);
    // Rounding of a sum is bounded by the sum of the terms' magnitudes.
    double sum = 0, sum_size = 0, dot = 0, dot_size = 0, centred = 0, centred_size = 0;
    for (size_t i = 0; i < n; ++i) {
      store_real(a[i], &x[i]);
      y[i] = b[i];
      out[i] = b[i];
      const double value = as_real(x[i]), product = (value - 0.25) * (value - 0.5);
      sum += value;
      sum_size += std::abs(value);
      dot += value * b[i];
      dot_size += std::abs(value * b[i]);
      centred += product;
      centred_size += std::abs(product);
    }
    const auto count = static_cast<int64_t>(n);
    EXPECT_NEAR(vec::sum(x.data(), count), sum, tolerance * sum_size);
    EXPECT_NEAR(vec::dot(x.data(), y.data(), count), dot, tolerance * dot_size);
    EXPECT_NEAR(vec::centred_dot<T>(x.data(), Real<T>(0.25), x.data(), Real<T>(0.5), count),
                centred, tolerance * centred_size);
    vec::add_scaled<T>(Real<T>(1.5), x.data(), out.data(), count);
    for (size_t i = 0; i < n; ++i) {
      EXPECT_NEAR(out[i], b[i] + 1.5 * as_real(x[i]), 8 * tolerance);
    }
  }
}

TEST(Vec, SumsOfEveryLength) {
  check_sums<double>(1e-14);
  check_sums<float>(1e-6);
  check_sums<Bf16>(1e-6);  // inputs are bfloat16, sums float
}

}  // namespace
}  // namespace mgm::kernels
