#include "image/resize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "unit/image/samples.h"

namespace mgm {
namespace {

// The resize written out plainly, one pixel after another: the oracle of the fast one.
double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// src rows of `size` pixels, `stride` apart between pixels, into `scaled` pixels.
std::vector<uint8_t> plain_pass(const std::vector<uint8_t>& src, int64_t lines, int64_t size,
                                int64_t scaled, int64_t src_pixel, int64_t src_line,
                                int64_t dst_pixel, int64_t dst_line) {
  std::vector<uint8_t> out(static_cast<size_t>(lines * scaled * 3));
  const double scale = static_cast<double>(size) / static_cast<double>(scaled);
  const double widened = scale < 1 ? 1 : scale;
  for (int64_t i = 0; i < scaled; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    int64_t begin = static_cast<int64_t>(center - 2 * widened + 0.5);
    int64_t end = static_cast<int64_t>(center + 2 * widened + 0.5);
    begin = begin < 0 ? 0 : begin;
    end = end > size ? size : end;
    std::vector<double> weights;
    double sum = 0;
    for (int64_t j = begin; j < end; ++j) {
      weights.push_back(cubic((static_cast<double>(j) - center + 0.5) * (1 / widened)));
      sum += weights.back();
    }
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t c = 0; c < 3; ++c) {
        int64_t total = 1 << 21;
        for (int64_t j = begin; j < end; ++j) {
          const double w = weights[static_cast<size_t>(j - begin)] / sum * (1 << 22);
          const auto at = static_cast<size_t>(line * src_line + j * src_pixel + c);
          total += src[at] * static_cast<int64_t>(w < 0 ? w - 0.5 : w + 0.5);
        }
        total >>= 22;
        out[static_cast<size_t>(line * dst_line + i * dst_pixel + c)] =
            static_cast<uint8_t>(total < 0     ? 0
                                 : total > 255 ? 255
                                               : total);
      }
    }
  }
  return out;
}

RgbImage plain_horizontal(const RgbImage& in, int64_t width) {
  RgbImage out(width, in.height);
  out.hwc = plain_pass(in.hwc, in.height, in.width, width, 3, in.width * 3, 3, width * 3);
  return out;
}

RgbImage plain_vertical(const RgbImage& in, int64_t height) {
  RgbImage out(in.width, height);
  out.hwc = plain_pass(in.hwc, in.width, in.height, height, in.width * 3, 3, in.width * 3, 3);
  return out;
}

RgbImage plain_resize(const RgbImage& in, int64_t width, int64_t height) {
  const int64_t shrink_x = in.width - width, shrink_y = in.height - height;
  if (shrink_y > 0 && shrink_y > 2 * shrink_x) {
    return plain_horizontal(plain_vertical(in, height), width);
  }
  return plain_vertical(plain_horizontal(in, width), height);
}

constexpr int64_t kSizes[] = {1, 2, 3, 5, 16, 17, 31, 64, 97, 257};

TEST(Resize, EqualsThePlainOne) {
  uint64_t seed = 0;
  for (const int64_t w : kSizes) {
    for (const int64_t h : kSizes) {
      const RgbImage image = samples::noise(w, h, ++seed);
      for (const auto& [tw, th] : {std::pair<int64_t, int64_t>{1, 1}, {h, w}, {37, 29}, {128, 3}}) {
        EXPECT_EQ(resize_bicubic(image, tw, th).hwc, plain_resize(image, tw, th).hwc)
            << w << "x" << h << " to " << tw << "x" << th;
      }
    }
  }
}

TEST(Resize, SameSizeIsACopy) {
  for (const int64_t w : kSizes) {
    const RgbImage image = samples::noise(w, 7);
    EXPECT_EQ(resize_bicubic(image, w, 7).hwc, image.hwc) << w;
  }
}

TEST(Resize, VerticalFirstOnlyWhenItRemovesMoreThanTwiceAsMuch) {
  const RgbImage image = samples::noise(60, 101);
  // 20 columns less: 40 rows less keep the order, 41 turn it.
  EXPECT_EQ(resize_bicubic(image, 40, 61).hwc, plain_vertical(plain_horizontal(image, 40), 61).hwc);
  const RgbImage vertical_first = plain_horizontal(plain_vertical(image, 60), 40);
  EXPECT_EQ(resize_bicubic(image, 40, 60).hwc, vertical_first.hwc);
  EXPECT_NE(plain_vertical(plain_horizontal(image, 40), 60).hwc, vertical_first.hwc);
}

TEST(Resize, PartOfTheOutputIsACrop) {
  const RgbImage image = samples::noise(83, 59);
  const RgbImage whole = resize_bicubic(image, 131, 47);
  for (const auto& [x, nx, y, ny] :
       {std::array<int64_t, 4>{0, 131, 0, 47}, {130, 1, 46, 1}, {17, 53, 5, 31}, {1, 2, 3, 4}}) {
    const RgbImage part =
        resize_bicubic(image, {83, 0, 83, 131, x, nx}, {59, 0, 59, 47, y, ny}, {});
    ASSERT_EQ(part.width, nx);
    ASSERT_EQ(part.height, ny);
    for (int64_t r = 0; r < ny; ++r) {
      EXPECT_EQ(std::memcmp(part.row(r), whole.row(y + r) + x * 3, static_cast<size_t>(nx * 3)), 0);
    }
  }
}

TEST(Resize, VirtualBorderEqualsAStoredOne) {
  const Rgb border = {122, 116, 104};
  const std::array<int64_t, 6> cases[] = {// width, height, left, top, extent, side
                                          {1, 31, 15, 0, 31, 17},
                                          {31, 1, 0, 15, 31, 64},
                                          {40, 97, 28, 0, 97, 33},
                                          {5, 5, 1, 2, 9, 9}};
  for (const auto& [w, h, left, top, extent, side] : cases) {
    const RgbImage image = samples::noise(w, h);
    RgbImage stored(extent, extent);
    for (size_t i = 0; i < stored.hwc.size(); ++i) stored.hwc[i] = border[i % 3];
    for (int64_t y = 0; y < h; ++y) {
      std::memcpy(stored.row(top + y) + left * 3, image.row(y), static_cast<size_t>(w * 3));
    }
    EXPECT_EQ(resize_bicubic(image, {w, left, extent, side, 0, side},
                             {h, top, extent, side, 0, side}, border)
                  .hwc,
              resize_bicubic(stored, side, side).hwc)
        << w << "x" << h << " in " << extent << " to " << side;
  }
}

// Coefficients of a million taps are each rounded, and their sum is visibly off one.
TEST(Resize, LongBorderKeepsTheRoundingOfItsCoefficients) {
  const int64_t extent = 900001;
  RgbImage row(extent, 1);
  const Rgb border = {200, 128, 1};
  for (size_t i = 0; i < row.hwc.size(); ++i) row.hwc[i] = border[i % 3];
  const RgbImage expected = plain_horizontal(row, 1);
  EXPECT_NE(expected.hwc[0], border[0]);
  RgbImage pixel(1, 1);
  pixel.hwc = {border[0], border[1], border[2]};
  const ResizeAxis x = {1, 77, extent, 1, 0, 1}, y = {1, 0, 1, 1, 0, 1};
  EXPECT_EQ(resize_bicubic(pixel, x, y, border).hwc, expected.hwc);
  // Rows outside the picture, too, are what the horizontal pass makes of the border.
  const RgbImage below = resize_bicubic(pixel, x, {1, 0, 9, 9, 8, 1}, border);
  EXPECT_EQ(below.hwc, expected.hwc);
}

TEST(Resize, InconsistentAxesAreRefused) {
  const RgbImage image = samples::noise(4, 4);
  const ResizeAxis good = {4, 0, 4, 2, 0, 2};
  const ResizeAxis bad[] = {{5, 0, 5, 2, 0, 2},  {4, 0, 3, 2, 0, 2}, {4, 1, 4, 2, 0, 2},
                            {4, -1, 4, 2, 0, 2}, {4, 0, 4, 2, 1, 2}, {4, 0, 4, 2, 0, 0}};
  for (const ResizeAxis& axis : bad) {
    EXPECT_THROW(resize_bicubic(image, axis, good, {}), InternalError);
    EXPECT_THROW(resize_bicubic(image, good, axis, {}), InternalError);
  }
  EXPECT_THROW(resize_bicubic(image, good, {4, 1, 40, 2, 0, 2}, {}), InternalError);
}

}  // namespace
}  // namespace mgm
