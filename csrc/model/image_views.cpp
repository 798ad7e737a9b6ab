#include "model/image_views.h"

#include <ATen/ATen.h>

#include "types/upload.h"

namespace mgm {
namespace {

at::Tensor bilinear(const at::Tensor& x, int64_t side) {
  return at::upsample_bilinear2d(x, {side, side}, /*align_corners=*/false);
}

at::Tensor channel_vector(const std::vector<double>& values, const at::Tensor& like) {
  return upload(at::tensor(values, at::kFloat), like.device()).view({1, 3, 1, 1});
}

}  // namespace

at::Tensor normalise(const at::Tensor& canvases, const ImageConfig& image) {
  // The product with 1/255 is taken in double and rounded once, as NumPy does it in the CLIP
  // processor; a product in fp32 is off by up to 4.8e-7.
  const at::Tensor x =
      canvases.permute({0, 3, 1, 2}).contiguous().to(at::kDouble).mul_(1 / 255.0).to(at::kFloat);
  return x.sub(channel_vector(image.mean, x)).div_(channel_vector(image.std, x));
}

at::Tensor lr_views(const at::Tensor& hr, const ImageGeometry& geometry) {
  const int64_t n = hr.size(0), g = geometry.grid, s = geometry.lr_size;
  const at::Tensor lr = bilinear(hr, s * g);
  if (g == 1) return lr.unsqueeze(1);
  // [N, 3, g, s, g, s] -> [N, g, g, 3, s, s]
  at::Tensor views =
      lr.view({n, 3, g, s, g, s}).permute({0, 2, 4, 1, 3, 5}).reshape({n, g * g, 3, s, s});
  if (geometry.global) views = at::cat({views, bilinear(lr, s).unsqueeze(1)}, 1);
  return views;
}

at::Tensor upsampled_lr(const at::Tensor& hr, const ImageGeometry& geometry) {
  return bilinear(bilinear(hr, geometry.lr_size * geometry.grid), hr.size(2));
}

}  // namespace mgm
