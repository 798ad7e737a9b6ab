// A decoded picture: 8-bit RGB, row-major, no padding between rows (the layout of NumPy's
// np.asarray(picture.convert("RGB"))).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mgm {

using Rgb = std::array<uint8_t, 3>;

struct RgbImage {
  int64_t width = 0;         // pixels
  int64_t height = 0;        // pixels
  std::vector<uint8_t> hwc;  // [height, width, 3]

  RgbImage() = default;
  RgbImage(int64_t w, int64_t h) : width(w), height(h), hwc(static_cast<size_t>(w * h * 3)) {}
  uint8_t* row(int64_t y) { return hwc.data() + y * width * 3; }
  const uint8_t* row(int64_t y) const { return hwc.data() + y * width * 3; }
};

}  // namespace mgm
