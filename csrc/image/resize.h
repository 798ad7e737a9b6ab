// Antialiased bicubic resize, equal to Pillow's Image.resize(BICUBIC) to the bit: a = -0.5, support
// scaled with the reduction, coefficients in double rounded to 22-bit fixed point, uint8 between
// the two passes. The horizontal pass goes first, or, as since Pillow 13, the vertical one where it
// removes more than twice as many pixels as the horizontal one would. (Older versions always begin
// with the horizontal one; a canvas then differs in the last bits, and only for unpadded pictures
// more than twice as tall as wide.) Only what the wanted part of the output needs is computed, and
// only a band of intermediate rows is kept, so memory does not depend on the picture's height.
#pragma once

#include <cstdint>

#include "image/rgb_image.h"

namespace mgm {

// One axis of a resize. The picture lies inside a larger virtual extent whose other pixels are a
// border of one colour (never stored); that extent is resized to `scaled` pixels, and pixels
// [first, first + count) of those are the output.
struct ResizeAxis {
  int64_t size = 0;    // pixels of the picture
  int64_t offset = 0;  // virtual pixels before the picture
  int64_t extent = 0;  // offset + size + virtual pixels after the picture
  int64_t scaled = 0;  // what the extent is resized to
  int64_t first = 0;   // the wanted part of it
  int64_t count = 0;
};

// Throws InternalError if an axis is inconsistent (empty, or a part outside its whole), or if there
// is a border where the vertical pass goes first.
RgbImage resize_bicubic(const RgbImage& image, const ResizeAxis& x, const ResizeAxis& y,
                        const Rgb& border);

// The whole picture to width x height.
RgbImage resize_bicubic(const RgbImage& image, int64_t width, int64_t height);

}  // namespace mgm
