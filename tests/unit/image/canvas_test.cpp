#include "image/canvas.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "image/resize.h"
#include "unit/image/samples.h"

namespace mgm {
namespace {

const std::vector<double> kMean = {0.48145466, 0.4578275, 0.40821073};
const std::vector<double> kStd = {0.26862954, 0.26130258, 0.27577711};
constexpr Rgb kPad = {122, 116, 104};

RgbImage crop(const RgbImage& image, int64_t left, int64_t top, int64_t side) {
  RgbImage out(side, side);
  for (int64_t y = 0; y < side; ++y) {
    std::memcpy(out.row(y), image.row(top + y) + left * 3, static_cast<size_t>(side * 3));
  }
  return out;
}

TEST(Canvas, PadCentresOnASquare) {
  // Odd differences: the offset is rounded down.
  for (const auto& [w, h] :
       {std::pair<int64_t, int64_t>{7, 10}, {10, 7}, {1, 8}, {13, 1}, {5, 5}}) {
    const RgbImage image = samples::noise(w, h);
    const int64_t n = std::max(w, h);
    RgbImage square(n, n);
    for (size_t i = 0; i < square.hwc.size(); ++i) square.hwc[i] = kPad[i % 3];
    for (int64_t y = 0; y < h; ++y) {
      std::memcpy(square.row((n - h) / 2 + y) + (n - w) / 2 * 3, image.row(y),
                  static_cast<size_t>(w * 3));
    }
    for (const int64_t side : {1, 3, 31, 64}) {
      const RgbImage canvas = make_canvas(image, ImageAspect::kPad, side, kPad);
      EXPECT_EQ(canvas.width, side);
      EXPECT_EQ(canvas.height, side);
      EXPECT_EQ(canvas.hwc, resize_bicubic(square, side, side).hwc) << w << "x" << h;
    }
  }
}

TEST(Canvas, SquareResizesTheShorterEdgeAndCropsTheMiddle) {
  struct Case {
    int64_t width, height, side, scaled;  // scaled: the longer edge, int(side * long / short)
  };
  for (const Case& c : {Case{7, 10, 31, 44}, Case{10, 7, 31, 44}, Case{9, 9, 31, 31},
                        Case{640, 427, 336, 503}, Case{33, 71, 16, 34}}) {
    const RgbImage image = samples::noise(c.width, c.height);
    const bool wide = c.width > c.height;
    const RgbImage resized =
        resize_bicubic(image, wide ? c.scaled : c.side, wide ? c.side : c.scaled);
    const int64_t offset = (c.scaled - c.side) / 2;
    EXPECT_EQ(make_canvas(image, ImageAspect::kSquare, c.side, kPad).hwc,
              crop(resized, wide ? offset : 0, wide ? 0 : offset, c.side).hwc)
        << c.width << "x" << c.height;
  }
}

// Stored whole, the resized picture would have 768 x 76,800,000 pixels, the padded one 10^10.
TEST(Canvas, ExtremeAspectsNeedNoMemory) {
  for (const auto& [w, h] : {std::pair<int64_t, int64_t>{1, 100000}, {100000, 1}, {1, 5000}}) {
    const RgbImage image = samples::noise(w, h);
    for (const ImageAspect aspect : {ImageAspect::kPad, ImageAspect::kSquare}) {
      const RgbImage canvas = make_canvas(image, aspect, 768, kPad);
      EXPECT_EQ(canvas.hwc.size(), size_t{768 * 768 * 3});
    }
  }
}

TEST(Canvas, OnePixel) {
  RgbImage image(1, 1);
  image.hwc = {10, 200, 255};
  for (const ImageAspect aspect : {ImageAspect::kPad, ImageAspect::kSquare}) {
    const RgbImage canvas = make_canvas(image, aspect, 5, kPad);
    for (size_t i = 0; i < canvas.hwc.size(); ++i) EXPECT_EQ(canvas.hwc[i], image.hwc[i % 3]);
  }
  EXPECT_THROW(make_canvas(image, ImageAspect::kPad, 0, kPad), ConfigError);
}

TEST(Canvas, PadColourIsTheTruncatedMean) {
  EXPECT_EQ(pad_colour(kMean), kPad);
  EXPECT_EQ(pad_colour({0, 1, 0.5}), (Rgb{0, 255, 127}));
  EXPECT_THROW(pad_colour({0.5, 0.5}), ConfigError);
  EXPECT_THROW(pad_colour({0.5, 0.5, 1.5}), ConfigError);
  EXPECT_THROW(pad_colour({0.5, NAN, 0.5}), ConfigError);
}

// Known values of CLIPImageProcessor (transformers 4.57.3); the parity test compares all of them.
TEST(Canvas, NormalisationTable) {
  const auto table = normalisation_table(kMean, kStd);
  EXPECT_EQ(table[0], -1.79226255f);
  EXPECT_EQ(table[255], 1.93033612f);
  EXPECT_EQ(table[256 + 0], -1.75209713f);
  EXPECT_EQ(table[256 + 255], 2.0748837f);
  EXPECT_EQ(table[512 + 0], -1.48021984f);
  EXPECT_EQ(table[512 + 255], 2.14589691f);
  // A product in fp32 gives other last bits.
  int differing = 0;
  for (int u = 0; u < 256; ++u) {
    const float x = (static_cast<float>(u) * (1 / 255.0f) - 0.48145466f) / 0.26862954f;
    differing += x != table[static_cast<size_t>(u)];
  }
  EXPECT_GT(differing, 0);
  EXPECT_THROW(normalisation_table({0.5}, kStd), ConfigError);
  EXPECT_THROW(normalisation_table(kMean, {1, 1, 1, 1}), ConfigError);
}

}  // namespace
}  // namespace mgm
