// From the uint8 canvas to what the encoders see (MGM train.py _sample_item, spec of the CLIP
// processor): the normalised HR tensor and its LR views. Exact in fp32; the cast to the model's
// dtype comes last.
#pragma once

#include <ATen/core/Tensor.h>

#include "config/image_geometry.h"

namespace mgm {

// canvases uint8 [N, S, S, 3] RGB -> fp32 [N, 3, S, S]: ((float)(u / 255.0) - mean) / std.
at::Tensor normalise(const at::Tensor& canvases, const ImageConfig& image);

// hr fp32 [N, 3, S, S] -> fp32 [N, views, 3, s, s]: bilinear without antialiasing to (s g) x (s g),
// cut into g x g row-major tiles; with geometry.global that picture resized once more to s x s
// follows as the last view.
at::Tensor lr_views(const at::Tensor& hr, const ImageGeometry& geometry);

// The HR tensor of the ablation hr_source: upsampled_lr: the LR picture enlarged to S again.
at::Tensor upsampled_lr(const at::Tensor& hr, const ImageGeometry& geometry);

}  // namespace mgm
