// RGB in, a compressed picture out: PNG for what must be exact (`mgm preprocess --png`), JPEG for
// pictures inside reports.
#pragma once

#include <string>

#include "image/rgb_image.h"

namespace mgm {

// Throws InternalError if the image is empty or the library fails.
std::string encode_png(const RgbImage& image);
std::string encode_jpeg(const RgbImage& image, int quality);  // quality 1..100

}  // namespace mgm
