#include "kernels/bilinear_band.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace mgm::kernels {
namespace {

double weight_of(const BilinearBand<double>& band, int64_t out, int64_t in) {
  const int64_t k = in - band.first[static_cast<size_t>(out)];
  return k < 0 || k >= band.span ? 0 : band.weight[static_cast<size_t>(out * band.span + k)];
}

// 4 -> 8 by hand: sources -0.25 (clamped to 0), 0.25, 0.75, ..., 3.25 (second tap clamped).
TEST(BilinearBand, DoublingByHand) {
  const auto band = bilinear_band<double>(4, 8);
  EXPECT_EQ(band.span, 2);
  const double expected[8][4] = {{1, 0, 0, 0},     {.75, .25, 0, 0}, {.25, .75, 0, 0},
                                 {0, .75, .25, 0}, {0, .25, .75, 0}, {0, 0, .75, .25},
                                 {0, 0, .25, .75}, {0, 0, 0, 1}};
  for (int64_t i = 0; i < 8; ++i) {
    for (int64_t r = 0; r < 4; ++r) EXPECT_DOUBLE_EQ(weight_of(band, i, r), expected[i][r]);
  }
}

// 768 -> 336 reads source (i + 0.5) * 768 / 336 - 0.5 with two taps: no wider filter when
// shrinking.
TEST(BilinearBand, ShrinkingUsesTwoTaps) {
  const auto band = bilinear_band<double>(768, 336);
  for (int64_t i = 0; i < 336; ++i) {
    const double src = (static_cast<double>(i) + 0.5) * 768 / 336 - 0.5;
    const auto low = static_cast<int64_t>(std::floor(src));
    EXPECT_NEAR(weight_of(band, i, low), 1 - (src - std::floor(src)), 1e-12);
    EXPECT_NEAR(weight_of(band, i, low + 1), src - std::floor(src), 1e-12);
  }
  const auto halves = bilinear_band<double>(672, 336);  // the mean of each pair
  for (int64_t i = 0; i < 336; ++i) {
    EXPECT_EQ(weight_of(halves, i, 2 * i), 0.5);
    EXPECT_EQ(weight_of(halves, i, 2 * i + 1), 0.5);
  }
}

TEST(BilinearBand, RowsSumToOneAndReadersAreTheTranspose) {
  for (const auto& [in, middle, out] : {std::tuple<int64_t, int64_t, int64_t>{3, 27, 27},
                                        {13, 27, 9},
                                        {27, 27, 9},
                                        {1, 8, 4},
                                        {6, 24, 12},
                                        {24, 24, 6},
                                        {13, 108, 54},
                                        {7, 7, 7},
                                        {1, 1, 1},
                                        {96, 192, 96}}) {
    const auto band = bilinear_band<double>(in, middle, out);
    EXPECT_LE(band.span, 3);
    EXPECT_LE(band.span, in);
    for (int64_t i = 0; i < out; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < in; ++r) sum += weight_of(band, i, r);
      EXPECT_NEAR(sum, 1, 1e-14);
      EXPECT_GE(band.first[static_cast<size_t>(i)], 0);
      EXPECT_LE(band.first[static_cast<size_t>(i)] + band.span, in);
    }
    for (int64_t r = 0; r < in; ++r) {
      for (int64_t i = 0; i < out; ++i) {
        const int64_t first = band.first[static_cast<size_t>(i)];
        const bool reads = first <= r && r < first + band.span;
        const auto k = static_cast<size_t>(r);
        EXPECT_EQ(reads, band.out_begin[k] <= i && i < band.out_end[k])
            << in << ' ' << r << ' ' << i;
      }
    }
  }
}

// Two resizes in one band are the product of their matrices.
TEST(BilinearBand, Composition) {
  const auto up = bilinear_band<double>(6, 24), down = bilinear_band<double>(24, 12);
  const auto both = bilinear_band<double>(6, 24, 12);
  for (int64_t i = 0; i < 12; ++i) {
    for (int64_t r = 0; r < 6; ++r) {
      double product = 0;
      for (int64_t m = 0; m < 24; ++m) product += weight_of(down, i, m) * weight_of(up, m, r);
      EXPECT_NEAR(weight_of(both, i, r), product, 1e-15);
    }
  }
}

TEST(BilinearBand, RefusesEmptySides) {
  EXPECT_THROW(bilinear_band<float>(0, 4), InternalError);
  EXPECT_THROW(bilinear_band<float>(4, 0), InternalError);
}

}  // namespace
}  // namespace mgm::kernels
