// From a decoded picture to the uint8 HR canvas that is shipped to the device, as the reference
// prepares it (MGM expand2square, then transformers' CLIPImageProcessor: shortest edge to `side`,
// centre crop), to the bit.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "config/run_config.h"
#include "image/rgb_image.h"

namespace mgm {

// kPad: the picture centred on a square of `pad`, resized to side x side. kSquare: the shorter edge
// resized to `side`, the longer one cropped to its middle. Neither the padded square nor the
// uncropped picture is ever stored, so extreme aspect ratios cost no extra memory. Throws
// ConfigError if side < 1.
RgbImage make_canvas(const RgbImage& image, ImageAspect aspect, int64_t side, const Rgb& pad);

// int(mean * 255) per channel: (122, 116, 104) for CLIP's mean. Throws ConfigError unless `mean`
// has three values in [0, 1].
Rgb pad_colour(const std::vector<double>& mean);

// What a uint8 value u of channel c becomes in the HR tensor, at [c * 256 + u]. u * (1 / 255.0) is
// taken in double and rounded once; mean and std are applied in fp32, as CLIPImageProcessor does.
// Throws ConfigError unless mean and std have three values each.
std::array<float, 3 * 256> normalisation_table(const std::vector<double>& mean,
                                               const std::vector<double>& std);

}  // namespace mgm
