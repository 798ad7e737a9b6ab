// Codes and values of NF4, its maxima and int8 against the definitions, written out in double.
#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/rng.h"

namespace mgm::kernels {
namespace {

std::vector<float> normal(int64_t n, uint64_t key) {
  std::vector<float> out(static_cast<size_t>(n));
  fill_normal(out.data(), out.size(), key, 0, 0, 0.02);
  return out;
}

struct Nf4 {
  explicit Nf4(const std::vector<float>& x, const ParallelFor& parallel = serial_for)
      : n(static_cast<int64_t>(x.size())),
        codes((x.size() + 1) / 2, 0xAB),
        maxima((x.size() + 63) / 64, -1),
        maxima_codes(maxima.size(), 0xAB),
        scales((maxima.size() + 255) / 256, -1) {
    quantize_nf4_cpu<float>({n, x.data(), codes.data(), maxima.data()}, parallel);
    offset = quantize_maxima_cpu(
        {static_cast<int64_t>(maxima.size()), maxima.data(), maxima_codes.data(), scales.data()});
  }
  int code(int64_t i) const {
    const uint8_t byte = codes[static_cast<size_t>(i / 2)];
    return i % 2 == 0 ? byte >> 4 : byte & 15;
  }
  std::vector<float> back(const ParallelFor& parallel = serial_for) const {
    std::vector<float> out(static_cast<size_t>(n), -7);
    dequantize_nf4_cpu<float>(
        {n, codes.data(), maxima_codes.data(), scales.data(), offset, out.data()}, parallel);
    return out;
  }

  int64_t n;
  std::vector<uint8_t> codes;
  std::vector<float> maxima;
  std::vector<uint8_t> maxima_codes;
  std::vector<float> scales;
  float offset = 0;
};

// Ranges in another order and one by one.
void backwards(int64_t n, int64_t, const RangeBody& body) {
  for (int64_t i = n - 1; i >= 0; --i) body(i, i + 1);
}

TEST(Quantize, TablesAreAscendingAndHoldTheirEnds) {
  EXPECT_TRUE(std::is_sorted(std::begin(kNf4Values.v), std::end(kNf4Values.v)));
  EXPECT_TRUE(std::is_sorted(std::begin(kMaximaValues.v), std::end(kMaximaValues.v)));
  EXPECT_EQ(kNf4Values.v[7], 0);
  EXPECT_EQ(kMaximaValues.v[127], 0);
  EXPECT_EQ(kMaximaValues.v[255], 1);
  EXPECT_EQ(kMaximaValues.v[128], 0.55e-6f);
  EXPECT_EQ(kMaximaValues.v[0], -(0.1f + 0.9f * 63.5f / 64));
}

TEST(Quantize, Nf4ValuesKeepTheirCodes) {
  std::vector<float> x;
  for (const float scale : {0.25f, 3.0f}) {  // two blocks
    for (int i = 0; i < 64; ++i) x.push_back(kNf4Values.v[i % 16] * scale);
  }
  const Nf4 q(x);
  EXPECT_EQ(q.maxima, (std::vector<float>{0.25f, 3.0f}));
  for (int64_t i = 0; i < q.n; ++i) EXPECT_EQ(q.code(i), i % 16) << i;
  EXPECT_EQ(q.offset, 1.625f);
  EXPECT_EQ(q.scales, (std::vector<float>{1.375f}));
  EXPECT_EQ(q.maxima_codes, (std::vector<uint8_t>{0, 255}));
}

TEST(Quantize, Nf4TakesTheNearestValue) {
  for (const int64_t n : {1, 2, 63, 64, 65, 129, 64 * 300 + 7}) {
    const std::vector<float> x = normal(n, static_cast<uint64_t>(n));
    const Nf4 q(x);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t block = i / 64;
      double maximum = 0;
      for (int64_t k = block * 64; k < std::min(n, block * 64 + 64); ++k) {
        maximum = std::max(maximum, std::abs(double(x[static_cast<size_t>(k)])));
      }
      ASSERT_EQ(q.maxima[static_cast<size_t>(block)], static_cast<float>(maximum));
      const double scaled = double(x[static_cast<size_t>(i)]) / maximum;
      double nearest = 2;
      for (const float value : kNf4Values.v) nearest = std::min(nearest, std::abs(value - scaled));
      ASSERT_NEAR(std::abs(double(kNf4Values.v[q.code(i)]) - scaled), nearest, 1e-6)
          << n << " " << i;
    }
    if (n % 2 == 1) {
      EXPECT_EQ(q.codes.back() & 15, 7) << "what pads the last byte means 0";
    }
  }
}

TEST(Quantize, Nf4ValuesAreCodesTimesMaxima) {
  const std::vector<float> x = normal(64 * 300 + 7, 3);
  const Nf4 q(x);
  const std::vector<float> back = q.back();
  double worst = 0;
  for (int64_t i = 0; i < q.n; ++i) {
    const auto block = static_cast<size_t>(i / 64);
    const float maximum = kMaximaValues.v[q.maxima_codes[block]] * q.scales[block / 256] + q.offset;
    ASSERT_EQ(back[static_cast<size_t>(i)], kNf4Values.v[q.code(i)] * maximum) << i;
    worst = std::max(worst, std::abs(double(maximum / q.maxima[block]) - 1));
  }
  EXPECT_GT(worst, 0);
  EXPECT_LT(worst, 0.02) << "eight bits for a maximum";
}

TEST(Quantize, BlocksOfZerosStayZero) {
  std::vector<float> x = normal(192, 4);
  std::fill(x.begin() + 64, x.begin() + 128, 0.0f);
  const std::vector<float> back = Nf4(x).back();
  for (size_t i = 64; i < 128; ++i) EXPECT_EQ(back[i], 0);
  EXPECT_TRUE(std::any_of(back.begin(), back.begin() + 64, [](float v) { return v != 0; }));
  const std::vector<float> none = Nf4(std::vector<float>(70, 0.0f)).back();
  EXPECT_EQ(none, std::vector<float>(70, 0.0f));
}

TEST(Quantize, DoesNotDependOnHowRangesAreCut) {
  const std::vector<float> x = normal(64 * 9 + 5, 5);
  const Nf4 whole(x), parts(x, backwards);
  EXPECT_EQ(whole.codes, parts.codes);
  EXPECT_EQ(whole.maxima, parts.maxima);
  EXPECT_EQ(whole.back(), parts.back(backwards));
}

TEST(Quantize, Bf16IsTheFloatRoundedOnce) {
  const std::vector<float> x = normal(500, 6);
  const Nf4 q(x);
  std::vector<Bf16> out(x.size());
  dequantize_nf4_cpu<Bf16>(
      {q.n, q.codes.data(), q.maxima_codes.data(), q.scales.data(), q.offset, out.data()},
      serial_for);
  const std::vector<float> wide = q.back();
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i].bits, to_bf16(wide[i]).bits) << i;
}

TEST(Quantize, Int8RowsByTheirOwnMaximum) {
  constexpr int64_t kRows = 5, kWidth = 37;
  std::vector<float> x = normal(kRows * kWidth, 7);
  std::fill(x.begin() + kWidth, x.begin() + 2 * kWidth, 0.0f);
  std::vector<int8_t> codes(x.size(), 99);
  std::vector<float> scales(kRows), back(x.size());
  quantize_int8_cpu<float>({kRows, kWidth, x.data(), codes.data(), scales.data()}, backwards);
  dequantize_int8_cpu<float>({kRows, kWidth, codes.data(), scales.data(), back.data()}, serial_for);
  for (int64_t r = 0; r < kRows; ++r) {
    float maximum = 0;
    int extreme = 0;
    for (int64_t i = r * kWidth; i < (r + 1) * kWidth; ++i) {
      maximum = std::max(maximum, std::abs(x[static_cast<size_t>(i)]));
      extreme = std::max(extreme, std::abs(int(codes[static_cast<size_t>(i)])));
    }
    const auto row = static_cast<size_t>(r);
    EXPECT_EQ(scales[row], maximum / 127);
    EXPECT_EQ(extreme, r == 1 ? 0 : 127);
    for (int64_t i = r * kWidth; i < (r + 1) * kWidth; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_EQ(back[at], float(codes[at]) * scales[row]);
      EXPECT_LE(std::abs(back[at] - x[at]), 0.5001f * scales[row]);
    }
  }
}

TEST(Quantize, Int8RoundsHalvesToEven) {
  const std::vector<float> x = {127, 2.5f, 3.5f, -2.5f, -3.5f};
  std::vector<int8_t> codes(5);
  float scale = 0;
  quantize_int8_cpu<float>({1, 5, x.data(), codes.data(), &scale}, serial_for);
  EXPECT_EQ(codes, (std::vector<int8_t>{127, 2, 4, -2, -4}));
}

}  // namespace
}  // namespace mgm::kernels
