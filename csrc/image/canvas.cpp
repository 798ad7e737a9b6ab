#include "image/canvas.h"

#include <algorithm>

#include "base/error.h"
#include "image/resize.h"

namespace mgm {
namespace {

void check_three(const std::vector<double>& values, const char* name) {
  if (values.size() != 3) {
    throw ConfigError("image.", name, ": expected 3 values, one per channel, got ", values.size());
  }
}

// One axis of the pad: the picture in the middle of a square of `extent`.
ResizeAxis pad_axis(int64_t size, int64_t extent, int64_t side) {
  return {size, (extent - size) / 2, extent, side, 0, side};
}

// One axis of the centre crop, when the shorter edge `shorter` becomes `side`.
ResizeAxis crop_axis(int64_t size, int64_t shorter, int64_t side) {
  // int(side * size / shorter) with Python's true division: one rounding to double, then
  // truncation.
  const int64_t scaled =
      static_cast<int64_t>(static_cast<double>(side * size) / static_cast<double>(shorter));
  return {size, 0, size, scaled, (scaled - side) / 2, side};
}

}  // namespace

RgbImage make_canvas(const RgbImage& image, ImageAspect aspect, int64_t side, const Rgb& pad) {
  if (side < 1) throw ConfigError("canvas side ", side, ": must be at least 1");
  const int64_t w = image.width, h = image.height;
  if (aspect == ImageAspect::kPad) {
    const int64_t extent = std::max(w, h);
    return resize_bicubic(image, pad_axis(w, extent, side), pad_axis(h, extent, side), pad);
  }
  const int64_t shorter = std::min(w, h);
  return resize_bicubic(image, crop_axis(w, shorter, side), crop_axis(h, shorter, side), pad);
}

Rgb pad_colour(const std::vector<double>& mean) {
  check_three(mean, "mean");
  Rgb colour = {};
  for (size_t c = 0; c < 3; ++c) {
    if (!(mean[c] >= 0 && mean[c] <= 1)) {
      throw ConfigError("image.mean[", c, "]: ", mean[c], " is not within [0, 1]");
    }
    colour[c] = static_cast<uint8_t>(mean[c] * 255);
  }
  return colour;
}

std::array<float, 3 * 256> normalisation_table(const std::vector<double>& mean,
                                               const std::vector<double>& std) {
  check_three(mean, "mean");
  check_three(std, "std");
  std::array<float, 3 * 256> table = {};
  for (size_t c = 0; c < 3; ++c) {
    for (size_t u = 0; u < 256; ++u) {
      const float x = static_cast<float>(static_cast<double>(u) * (1 / 255.0));
      table[c * 256 + u] = (x - static_cast<float>(mean[c])) / static_cast<float>(std[c]);
    }
  }
  return table;
}

}  // namespace mgm
