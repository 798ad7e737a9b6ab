// Compressed picture in, RGB out: what Pillow's Image.open(...).convert("RGB") gives, byte for
// byte. The format is told from the content, never from the name. JPEG, PNG, WebP and GIF (of
// animations the first frame). Transparency is dropped, ICC profiles and the EXIF orientation are
// ignored, 16-bit grey is clipped at 255 and 16-bit colour keeps its high byte, all as Pillow does.
//
// Unlike Pillow, a picture whose pixel data are damaged or cut is never returned with a grey rest
// or random pixels. All functions throw DataError, which names `source`, for: no picture, an
// unsupported or broken one, more than kMaxPixels pixels or a side above kMaxSide (told from the
// header, before anything is allocated).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "image/rgb_image.h"

namespace mgm {

inline constexpr int64_t kMaxPixels = 178956970;  // Pillow's decompression bomb limit
inline constexpr int64_t kMaxSide = 1000000;      // keeps resize coefficients and rows small

enum class ImageFormat { kJpeg, kPng, kWebp, kGif };
const char* format_name(ImageFormat format);  // "JPEG", ...

struct ImageInfo {
  ImageFormat format = ImageFormat::kJpeg;
  int64_t width = 0;   // pixels
  int64_t height = 0;  // pixels
  std::string mode;    // what Pillow calls it: 1, L, I;16, LA, P, RGB, RGBA, CMYK
};

// Reads only the header.
ImageInfo probe(std::string_view bytes, const std::string& source);

RgbImage decode_rgb(std::string_view bytes, const std::string& source);

}  // namespace mgm
