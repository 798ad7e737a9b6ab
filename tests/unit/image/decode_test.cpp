// What decode_rgb does with whole pictures of every kind; damaged ones are in damage_test.cpp. The
// comparison with Pillow is tests/parity/test_image_parity.py.
#include "image/decode.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"
#include "image/encode.h"
#include "unit/image/samples.h"

namespace mgm {
namespace {

using samples::PngOptions;

void expect_info(const std::string& bytes, ImageFormat format, int64_t width, int64_t height,
                 const std::string& mode) {
  const ImageInfo info = probe(bytes, "sample");
  EXPECT_EQ(info.format, format);
  EXPECT_EQ(info.width, width);
  EXPECT_EQ(info.height, height);
  EXPECT_EQ(info.mode, mode);
}

TEST(Png, RgbRoundTripOfOddSizes) {
  for (const auto& [w, h] : {std::pair<int64_t, int64_t>{1, 1}, {1, 97}, {97, 1}, {31, 17}}) {
    const RgbImage image = samples::noise(w, h);
    const std::string bytes = encode_png(image);
    expect_info(bytes, ImageFormat::kPng, w, h, "RGB");
    EXPECT_EQ(decode_rgb(bytes, "sample").hwc, image.hwc);
  }
}

TEST(Png, InterlacedEqualsPlain) {
  const RgbImage image = samples::noise(19, 23);
  EXPECT_EQ(decode_rgb(samples::write_png(19, 23, image.hwc, {.interlaced = true}), "s").hwc,
            image.hwc);
}

// One row of greys of `bits` bits, 0, 1, 2, ...
std::vector<uint8_t> grey_row(int width, int bits) {
  std::vector<uint8_t> row(static_cast<size_t>((width * bits + 7) / 8));
  for (int x = 0; x < width; ++x) {
    const int at = x * bits;
    const int value = x % (1 << bits);
    row[static_cast<size_t>(at / 8)] |= static_cast<uint8_t>(value << (8 - bits - at % 8));
  }
  return row;
}

TEST(Png, FewBitsOfGreyAreScaledUp) {
  for (const int bits : {1, 2, 4, 8}) {
    const std::string bytes = samples::write_png(11, 1, grey_row(11, bits),
                                                 {.colour = PNG_COLOR_TYPE_GRAY, .bits = bits});
    expect_info(bytes, ImageFormat::kPng, 11, 1, bits == 1 ? "1" : "L");
    const RgbImage image = decode_rgb(bytes, "sample");
    const int largest = (1 << bits) - 1;
    for (int x = 0; x < 11; ++x) {
      const int expected = x % (1 << bits) * (255 / largest);
      for (int c = 0; c < 3; ++c) EXPECT_EQ(image.row(0)[3 * x + c], expected) << bits << " " << x;
    }
  }
}

TEST(Png, SixteenBitGreyClipsAndSixteenBitColourKeepsTheHighByte) {
  for (const bool interlaced : {false, true}) {
    const std::string grey =
        samples::write_png(4, 1, {0, 0, 0, 255, 1, 0, 255, 255},
                           {.colour = PNG_COLOR_TYPE_GRAY, .bits = 16, .interlaced = interlaced});
    expect_info(grey, ImageFormat::kPng, 4, 1, "I;16");
    EXPECT_EQ(decode_rgb(grey, "s").hwc,
              (std::vector<uint8_t>{0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255}));
  }
  const std::string colour = samples::write_png(1, 1, {1, 255, 2, 0, 255, 127},
                                                {.colour = PNG_COLOR_TYPE_RGB, .bits = 16});
  EXPECT_EQ(decode_rgb(colour, "s").hwc, (std::vector<uint8_t>{1, 2, 255}));
  const std::string with_alpha =
      samples::write_png(1, 1, {7, 255, 0, 0}, {.colour = PNG_COLOR_TYPE_GRAY_ALPHA, .bits = 16});
  expect_info(with_alpha, ImageFormat::kPng, 1, 1, "RGBA");
  EXPECT_EQ(decode_rgb(with_alpha, "s").hwc, (std::vector<uint8_t>{7, 7, 7}));
}

TEST(Png, AlphaIsDropped) {
  const std::string rgba =
      samples::write_png(2, 1, {1, 2, 3, 0, 4, 5, 6, 128}, {.colour = PNG_COLOR_TYPE_RGB_ALPHA});
  expect_info(rgba, ImageFormat::kPng, 2, 1, "RGBA");
  EXPECT_EQ(decode_rgb(rgba, "s").hwc, (std::vector<uint8_t>{1, 2, 3, 4, 5, 6}));
  const std::string la =
      samples::write_png(2, 1, {9, 0, 8, 255}, {.colour = PNG_COLOR_TYPE_GRAY_ALPHA});
  expect_info(la, ImageFormat::kPng, 2, 1, "LA");
  EXPECT_EQ(decode_rgb(la, "s").hwc, (std::vector<uint8_t>{9, 9, 9, 8, 8, 8}));
}

TEST(Png, PaletteWithTransparencyKeepsItsColoursAndUndefinedOnesAreBlack) {
  for (const int bits : {2, 4, 8}) {
    for (const bool interlaced : {false, true}) {
      const std::string bytes = samples::write_png(4, 1, grey_row(4, bits > 2 ? bits : 2),
                                                   {.colour = PNG_COLOR_TYPE_PALETTE,
                                                    .bits = bits,
                                                    .interlaced = interlaced,
                                                    .palette = {{9, 8, 7}, {250, 1, 2}, {3, 4, 5}},
                                                    .transparency = std::string("\0\x80", 2)});
      expect_info(bytes, ImageFormat::kPng, 4, 1, "P");
      EXPECT_EQ(decode_rgb(bytes, "s").hwc,
                (std::vector<uint8_t>{9, 8, 7, 250, 1, 2, 3, 4, 5, 0, 0, 0}));
    }
  }
}

TEST(Png, CompressedTextIsNeverUnpacked) {
  const std::string bomb =
      samples::write_png(1, 1, {5, 6, 7}, {.text = std::string(50 << 20, 'x')});
  EXPECT_LT(bomb.size(), size_t{100000});
  EXPECT_EQ(decode_rgb(bomb, "s").hwc, (std::vector<uint8_t>{5, 6, 7}));
}

int max_difference(const RgbImage& a, const RgbImage& b) {
  int worst = 0;
  for (size_t i = 0; i < a.hwc.size(); ++i) worst = std::max(worst, std::abs(a.hwc[i] - b.hwc[i]));
  return worst;
}

// A soft gradient, which lossy formats keep well.
RgbImage gradient(int64_t width, int64_t height) {
  RgbImage image(width, height);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      uint8_t* pixel = image.row(y) + 3 * x;
      pixel[0] = pixel[1] = pixel[2] = static_cast<uint8_t>(255 * (x + y) / (width + height));
    }
  }
  return image;
}

TEST(Jpeg, ColourGreyProgressiveAndRestartsComeBack) {
  for (const auto& [w, h] : {std::pair<int, int>{1, 1}, {61, 37}, {16, 129}}) {
    const RgbImage image = gradient(w, h);
    const std::string plain = encode_jpeg(image, 95);
    expect_info(plain, ImageFormat::kJpeg, w, h, "RGB");
    EXPECT_LE(max_difference(decode_rgb(plain, "s"), image), 6);
    const std::string sequential = samples::write_jpeg(w, h, image.hwc, {});
    for (const samples::JpegOptions& options :
         {samples::JpegOptions{.progressive = true}, samples::JpegOptions{.restart = 2}}) {
      // The coefficients are the same, so the pixels are.
      EXPECT_EQ(decode_rgb(samples::write_jpeg(w, h, image.hwc, options), "s").hwc,
                decode_rgb(sequential, "s").hwc);
    }
    std::vector<uint8_t> grey;
    for (size_t i = 0; i < image.hwc.size(); i += 3) grey.push_back(image.hwc[i]);
    const std::string one_channel = samples::write_jpeg(w, h, grey, {.channels = 1});
    expect_info(one_channel, ImageFormat::kJpeg, w, h, "L");
    EXPECT_LE(max_difference(decode_rgb(one_channel, "s"), image), 6);
  }
}

// CMYK is read as stored inverted, with or without the Adobe marker: 255 is no ink.
TEST(Jpeg, CmykIsTakenAsInverted) {
  std::vector<uint8_t> cmyk;
  for (int i = 0; i < 64; ++i) cmyk.insert(cmyk.end(), {255, 128, 0, 255});
  for (const bool adobe : {false, true}) {
    const std::string bytes = samples::write_jpeg(8, 8, cmyk, {.channels = 4, .adobe = adobe});
    expect_info(bytes, ImageFormat::kJpeg, 8, 8, "CMYK");
    const RgbImage image = decode_rgb(bytes, "s");
    EXPECT_NEAR(image.hwc[0], 255, 2);
    EXPECT_NEAR(image.hwc[1], 128, 2);
    EXPECT_NEAR(image.hwc[2], 0, 2);
  }
}

TEST(WebP, LosslessIsExactAndLossyIsClose) {
  for (const auto& [w, h] : {std::pair<int64_t, int64_t>{1, 1}, {31, 17}, {64, 5}}) {
    const RgbImage noise = samples::noise(w, h);
    const std::string lossless = samples::write_webp_lossless(noise);
    expect_info(lossless, ImageFormat::kWebp, w, h, "RGB");
    EXPECT_EQ(decode_rgb(lossless, "s").hwc, noise.hwc);
    const RgbImage soft = gradient(w, h);
    EXPECT_LE(max_difference(decode_rgb(samples::write_webp_lossy(soft), "s"), soft), 12);
  }
}

const std::string kRedGreenBlueWhite = {"\xff\0\0\0\xff\0\0\0\xff\xff\xff\xff", 12};

TEST(Gif, PlainInterlacedAndLongStrings) {
  std::vector<uint8_t> indices(23 * 19);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<uint8_t>(i / 23 % 4);
  const auto colour = [](int y, int c) {
    const int index = y % 4;
    return index == 3 || index == c ? 255 : 0;
  };
  const std::string bytes = samples::write_gif(23, 19, indices, {.palette = kRedGreenBlueWhite});
  expect_info(bytes, ImageFormat::kGif, 23, 19, "P");
  const RgbImage image = decode_rgb(bytes, "s");
  for (int y = 0; y < 19; ++y) {
    for (int c = 0; c < 3; ++c) EXPECT_EQ(image.row(y)[3 * 22 + c], colour(y, c)) << y;
  }
  // The same rows in the order of the four passes.
  std::vector<uint8_t> shuffled;
  for (const auto& [first, step] : {std::pair<int, int>{0, 8}, {4, 8}, {2, 4}, {1, 2}}) {
    for (int y = first; y < 19; y += step) shuffled.insert(shuffled.end(), 23, uint8_t(y % 4));
  }
  EXPECT_EQ(decode_rgb(samples::write_gif(23, 19, shuffled,
                                          {.interlaced = true, .palette = kRedGreenBlueWhite}),
                       "s")
                .hwc,
            image.hwc);
}

TEST(Gif, FrameInsideAndBeyondTheCanvas) {
  // Around the frame: the transparent colour, else colour 0.
  const std::string inside = samples::write_gif(
      1, 1, {2},
      {.canvas_width = 2, .canvas_height = 2, .left = 1, .top = 1, .palette = kRedGreenBlueWhite});
  EXPECT_EQ(decode_rgb(inside, "s").hwc,
            (std::vector<uint8_t>{255, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 255}));
  const std::string beyond = samples::write_gif(1, 1, {2},
                                                {.canvas_width = 1,
                                                 .canvas_height = 1,
                                                 .left = 1,
                                                 .transparent = 1,
                                                 .palette = kRedGreenBlueWhite});
  expect_info(beyond, ImageFormat::kGif, 2, 1, "P");
  EXPECT_EQ(decode_rgb(beyond, "s").hwc, (std::vector<uint8_t>{0, 255, 0, 0, 0, 255}));
}

TEST(Gif, Palettes) {
  const std::string black_red = {"\0\0\0\xff\0\0", 6}, greys = {"\0\0\0\1\1\1", 6};
  const auto pixels = [](const samples::GifOptions& options) {
    return decode_rgb(samples::write_gif(2, 1, {1, 5}, options), "s").hwc;
  };
  // An index beyond the palette is black.
  EXPECT_EQ(pixels({.palette = black_red}), (std::vector<uint8_t>{255, 0, 0, 0, 0, 0}));
  EXPECT_EQ(pixels({.palette = black_red, .local_palette = kRedGreenBlueWhite}),
            (std::vector<uint8_t>{0, 255, 0, 0, 0, 0}));
  // No palette and a palette of greys: the index is the grey.
  EXPECT_EQ(pixels({}), (std::vector<uint8_t>{1, 1, 1, 5, 5, 5}));
  EXPECT_EQ(pixels({.palette = greys}), (std::vector<uint8_t>{1, 1, 1, 5, 5, 5}));
  EXPECT_EQ(pixels({.palette = black_red, .local_palette = greys}),
            (std::vector<uint8_t>{255, 0, 0, 0, 0, 0}));
}

TEST(Encode, EmptyAndOddQualityAreRefused) {
  EXPECT_THROW(encode_png({}), InternalError);
  EXPECT_THROW(encode_jpeg({}, 90), InternalError);
  EXPECT_THROW(encode_jpeg(samples::noise(2, 2), 0), InternalError);
}

}  // namespace
}  // namespace mgm
