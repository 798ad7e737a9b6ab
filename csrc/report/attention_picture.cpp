#include "report/attention_picture.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace mgm {
namespace {

constexpr double kFull = 4;  // multiple of the uniform weight with the full tint
constexpr std::array<double, 3> kTint = {230, 60, 20};
constexpr double kGrey = 0.55;  // how much of the picture's own colour gives way to grey

}  // namespace

RgbImage draw_attention(const RgbImage& canvas, const std::vector<float>& weights,
                        const ImageGeometry& g) {
  const int64_t n = g.lr_patches, p = g.window, grid = g.grid;
  const int64_t first_tile = g.global ? n * n : 0;  // the global view's tokens come first
  const auto tokens = static_cast<size_t>(first_tile + grid * grid * n * n);
  MGM_CHECK(p > 0 && weights.size() == tokens * static_cast<size_t>(p * p), weights.size(),
            " weights for ", tokens, " windows of ", p, " x ", p);
  const int64_t cell = std::max<int64_t>(1, canvas.width / g.map_size);  // pixels per HR position
  RgbImage out = canvas;
  for (int64_t y = 0; y < canvas.height; ++y) {
    for (int64_t x = 0; x < canvas.width; ++x) {
      const int64_t row = std::min(y / cell, g.map_size - 1),
                    column = std::min(x / cell, g.map_size - 1);
      const int64_t patch_row = row / p, patch_column = column / p;  // over the whole map
      const int64_t tile = patch_row / n * grid + patch_column / n;
      const int64_t token = first_tile + tile * n * n + patch_row % n * n + patch_column % n;
      const int64_t place = row % p * p + column % p;
      const double weight = double(weights[size_t(token * p * p + place)]) * double(p * p);
      const double alpha = std::clamp((weight - 1) / (kFull - 1), 0.0, 1.0) * 0.85;
      uint8_t* pixel = out.row(y) + 3 * x;
      const double grey = (pixel[0] * 0.299 + pixel[1] * 0.587 + pixel[2] * 0.114) * 0.6 + 100;
      for (size_t c = 0; c < 3; ++c) {
        const double base = kGrey * grey + (1 - kGrey) * pixel[c];
        pixel[c] = static_cast<uint8_t>(
            std::lround(std::min(255.0, base * (1 - alpha) + kTint[c] * alpha)));
      }
    }
  }
  return out;
}

}  // namespace mgm
