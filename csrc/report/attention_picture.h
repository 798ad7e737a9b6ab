// Where patch info mining looks: the weights of every window drawn over the HR picture.
#pragma once

#include "config/image_geometry.h"
#include "image/rgb_image.h"

namespace mgm {

// `weights` [tokens, window^2] of one image in final token order (each row sums to 1), as floats.
// Every HR position of stage 0 is tinted by its weight times window^2 (1: all positions of the
// window alike): nothing up to 1, full at 4 and above. The global view, if any, is left out: its
// windows cover the whole picture once more.
RgbImage draw_attention(const RgbImage& canvas, const std::vector<float>& weights,
                        const ImageGeometry& geometry);

}  // namespace mgm
