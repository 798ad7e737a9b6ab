// Pictures that must be refused: cut, damaged, too large, of an unknown kind.
#include <gtest/gtest.h>

#include "base/error.h"
#include "image/decode.h"
#include "image/encode.h"
#include "unit/image/samples.h"

namespace mgm {
namespace {

std::string error_of(const std::string& bytes) {
  try {
    decode_rgb(bytes, "folder/picture.bin");
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

void expect_error(const std::string& bytes, const std::string& part) {
  const std::string message = error_of(bytes);
  EXPECT_NE(message.find(part), message.npos) << message;
  EXPECT_NE(message.find("folder/picture.bin"), message.npos) << message;
}

std::vector<std::string> one_of_each() {
  const RgbImage image = samples::noise(29, 23);
  std::vector<uint8_t> cmyk = samples::noise_bytes(29 * 23 * 4, 2);
  std::vector<uint8_t> indices(29 * 23);
  for (size_t i = 0; i < indices.size(); ++i) indices[i] = image.hwc[3 * i] & 3;
  return {encode_png(image),
          samples::write_png(29, 23, image.hwc, {.interlaced = true}),
          encode_jpeg(image, 80),
          samples::write_jpeg(29, 23, image.hwc, {.progressive = true}),
          samples::write_jpeg(29, 23, image.hwc, {.restart = 1}),
          samples::write_jpeg(29, 23, cmyk, {.channels = 4, .adobe = true}),
          samples::write_webp_lossless(image),
          samples::write_webp_lossy(image),
          samples::write_gif(29, 23, indices, {.interlaced = true}),
          samples::write_gif(29, 23, indices, {.canvas_width = 40, .transparent = 1})};
}

// At no length is a part of a picture taken for the picture: it is refused, or (where only bytes
// after the pixels are missing) complete.
TEST(Damage, EveryCutIsRefusedOrComplete) {
  for (const std::string& bytes : one_of_each()) {
    const RgbImage whole = decode_rgb(bytes, "whole");
    size_t complete = 0;
    for (size_t n = 0; n < bytes.size(); ++n) {
      try {
        EXPECT_EQ(decode_rgb(std::string_view(bytes).substr(0, n), "cut").hwc, whole.hwc) << n;
        ++complete;
      } catch (const DataError& e) {
        EXPECT_NE(std::string(e.what()).find("cut"), std::string::npos);
      }
    }
    EXPECT_LE(complete, 20u) << bytes.substr(0, 4);  // an end marker at most
    EXPECT_EQ(error_of(bytes.substr(0, bytes.size() / 2)).empty(), false);
  }
}

TEST(Damage, CutMessagesSaySo) {
  for (const std::string& bytes : one_of_each())
    expect_error(bytes.substr(0, bytes.size() / 2), "cut");
}

// Random bytes in the file: no crash, and only DataErrors.
TEST(Damage, RandomBytesNeverCrash) {
  int refused = 0;
  for (const std::string& bytes : one_of_each()) {
    for (uint64_t i = 0; i < 300; ++i) {
      std::string damaged = bytes;
      for (int k = 0; k < 3; ++k) {
        const auto r = philox(9, i, static_cast<uint64_t>(k));
        damaged[12 + r[0] % (damaged.size() - 12)] = static_cast<char>(r[1]);
      }
      try {
        if (probe(damaged, "damaged").width > 5000) continue;  // valid, and slow
        decode_rgb(damaged, "damaged");
      } catch (const DataError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(Damage, JpegWithAHoleIsRefused) {
  std::string bytes = samples::write_jpeg(64, 64, samples::noise(64, 64).hwc, {.restart = 1});
  std::string cut = bytes.substr(0, bytes.size() / 2) + "\xff\xd9";
  expect_error(cut, "broken JPEG");
}

std::string png_header(uint32_t width, uint32_t height) {
  std::string bytes = encode_png(samples::noise(1, 1));
  for (int i = 0; i < 4; ++i) {
    bytes[static_cast<size_t>(16 + i)] = static_cast<char>(width >> (24 - 8 * i));
    bytes[static_cast<size_t>(20 + i)] = static_cast<char>(height >> (24 - 8 * i));
  }
  uint32_t crc = ~0u;  // of the chunk's name and content
  for (size_t i = 12; i < 29; ++i) {
    crc ^= static_cast<uint8_t>(bytes[i]);
    for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  crc = ~crc;
  for (int i = 0; i < 4; ++i)
    bytes[static_cast<size_t>(29 + i)] = static_cast<char>(crc >> (24 - 8 * i));
  return bytes;
}

TEST(Damage, TooManyPixelsAreRefusedFromTheHeader) {
  expect_error(png_header(20000, 20000), "400000000 pixels is above the limit of 178956970");
  expect_error(png_header(178957, 1000), "above the limit");  // 178,957,000
  expect_error(png_header(1000001, 1), "1000000");
  EXPECT_THROW(probe(png_header(20000, 20000), "s"), DataError);
  EXPECT_EQ(probe(png_header(178956, 1000), "s").width, 178956);
  expect_error(png_header(0, 5), "broken PNG");
  // GIF: canvas of 65535 x 65535.
  std::string gif = samples::write_gif(1, 1, {0}, {.canvas_width = 65535, .canvas_height = 65535});
  expect_error(gif, "above the limit");
  gif = samples::write_gif(1, 1, {0}, {.left = 65000, .top = 65000});
  expect_error(gif, "above the limit");
}

TEST(Damage, EndlessProgressiveScansAreRefused) {
  const RgbImage image = samples::noise(8, 8);
  const std::string bytes = samples::write_jpeg(8, 8, image.hwc, {.progressive = true});
  const size_t last_scan = bytes.rfind("\xff\xda");
  const std::string scan = bytes.substr(last_scan, bytes.size() - 2 - last_scan);
  std::string bomb = bytes.substr(0, bytes.size() - 2);
  for (int i = 0; i < 600; ++i) bomb += scan;
  expect_error(bomb + "\xff\xd9", "broken JPEG");
}

TEST(Damage, GifWithInvalidCodesIsRefused) {
  std::string gif = samples::write_gif(2, 2, {0, 1, 2, 3}, {});
  const size_t data = gif.size() - 8;  // clear, four codes, end, terminator, trailer
  ASSERT_EQ(static_cast<uint8_t>(gif[data]), 0x80);
  gif[data + 2] = '\x90';  // not defined yet
  expect_error(gif, "invalid LZW code");
  gif[data + 2] = '\x81';
  expect_error(gif, "end early");
  for (const int bits : {13, 142, 255}) {
    gif[data - 2] = static_cast<char>(bits);
    expect_error(gif, "above 12 bits");
  }
}

TEST(Damage, OtherFilesAreNamed) {
  expect_error("", "the file is empty");
  expect_error("BM......", "BMP");
  expect_error(std::string("II*\0", 4) + "x", "TIFF");
  expect_error("<!DOCTYPE html><html>", "the download has probably failed");
  expect_error("\n {\"error\": 404}", "the download has probably failed");
  expect_error(std::string("\0\0\0\x1c", 4) + "ftypavif....", "AVIF");
  expect_error("hello", "68 65 6c 6c 6f");
  expect_error("hello", "JPEG, PNG, WebP, GIF");
  EXPECT_THROW(probe("hello", "s"), DataError);
}

}  // namespace
}  // namespace mgm
