#include "ops/resize.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "kernels/bilinear_band.h"
#include "types/upload.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [out, in] dense: few columns differ from 0, but a product with it is one call and deterministic.
template <class Real>
at::Tensor interpolation_matrix(int64_t in, int64_t out, at::ScalarType dtype) {
  const kernels::BilinearBand<Real> band = kernels::bilinear_band<Real>(in, out);
  at::Tensor matrix = at::zeros({out, in}, at::TensorOptions(dtype));
  Real* row = matrix.mutable_data_ptr<Real>();
  for (int64_t i = 0; i < out; ++i, row += in) {
    for (int64_t k = 0; k < band.span; ++k) {
      row[band.first[static_cast<size_t>(i)] + k] =
          band.weight[static_cast<size_t>(i * band.span + k)];
    }
  }
  return matrix;
}

at::Tensor matrix_like(const at::Tensor& gradient, int64_t in, int64_t out) {
  const at::ScalarType dtype = gradient.scalar_type();
  const at::Tensor matrix = dtype == at::kDouble ? interpolation_matrix<double>(in, out, dtype)
                                                 : interpolation_matrix<float>(in, out, dtype);
  return upload(matrix, gradient.device());
}

struct ResizeBilinear : torch::autograd::Function<ResizeBilinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, int64_t height,
                            int64_t width) {
    ctx->saved_data["height"] = x.size(2);
    ctx->saved_data["width"] = x.size(3);
    return at::upsample_bilinear2d(x, {height, width}, /*align_corners=*/false);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const at::Tensor& d_out = gradients[0];
    const at::Tensor rows = matrix_like(d_out, ctx->saved_data["height"].toInt(), d_out.size(2));
    const at::Tensor cols = matrix_like(d_out, ctx->saved_data["width"].toInt(), d_out.size(3));
    return {at::matmul(rows.t(), at::matmul(d_out, cols)), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor resize_bilinear(const at::Tensor& x_NCHW, int64_t height, int64_t width) {
  MGM_CHECK(x_NCHW.dim() == 4 &&
                (x_NCHW.scalar_type() == at::kFloat || x_NCHW.scalar_type() == at::kDouble),
            "resize_bilinear takes float32 or float64 [N, C, H, W], got ", x_NCHW.scalar_type(),
            " ", x_NCHW.sizes());
  return ResizeBilinear::apply(x_NCHW, height, width);
}

}  // namespace mgm::ops
