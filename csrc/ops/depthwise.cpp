#include "ops/depthwise.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "kernels/depthwise.h"
#include "ops/stream.h"

namespace mgm::ops {

#ifdef MGM_WITH_CUDA

namespace {

using kernels::Bf16;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::MapShape shape_of(const at::Tensor& x) {
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

template <class T>
const T* data(const at::Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias, bool flipped) {
  at::Tensor y = at::empty(x.sizes(), x.options());
  const DeviceStream device(x);
  kernels::depthwise_cuda<T>(
      {shape_of(x), data<T>(x), data<T>(weight), bias ? data<T>(*bias) : nullptr,
       static_cast<T*>(y.mutable_data_ptr()), flipped},
      device.stream());
  return y;
}

template <class T>
at::Tensor weight_gradient(const at::Tensor& d_y, const at::Tensor& x, const at::Tensor& weight) {
  at::Tensor d_weight = at::empty(weight.sizes(), weight.options());
  const kernels::MapShape shape = shape_of(x);
  const at::Tensor partial =
      at::empty({kernels::depthwise_partials(shape)}, x.options().dtype(at::kFloat));
  const DeviceStream device(x);
  kernels::depthwise_weight_gradient_cuda<T>(
      {shape, data<T>(x), data<T>(d_y), partial.mutable_data_ptr<float>(),
       static_cast<T*>(d_weight.mutable_data_ptr())},
      device.stream());
  return d_weight;
}

struct DepthwiseFunction : torch::autograd::Function<DepthwiseFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_any,
                            const at::Tensor& weight_any, const std::optional<at::Tensor>& bias) {
    ctx->saved_data["has_bias"] = bias.has_value();
    const at::Tensor x = x_any.contiguous(), weight = weight_any.contiguous();
    ctx->save_for_backward({x, weight});
    return x.scalar_type() == at::kFloat ? convolve<float>(x, weight, bias, false)
                                         : convolve<Bf16>(x, weight, bias, false);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], d_y = gradients[0].contiguous();
    const bool wide = x.scalar_type() == at::kFloat;
    at::Tensor d_x, d_weight, d_bias;
    if (ctx->needs_input_grad(0)) {
      d_x = wide ? convolve<float>(d_y, weight, {}, true) : convolve<Bf16>(d_y, weight, {}, true);
    }
    if (ctx->needs_input_grad(1)) {
      d_weight =
          wide ? weight_gradient<float>(d_y, x, weight) : weight_gradient<Bf16>(d_y, x, weight);
    }
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) {
      d_bias = d_y.sum({0, 1, 2});
    }
    return {d_x, d_weight, d_bias};
  }
};

bool is_map(const at::Tensor& x, const at::Tensor& weight) {
  return x.dim() == 4 && weight.dim() == 4 && weight.size(0) == x.size(3) && weight.size(1) == 1 &&
         weight.size(2) == kernels::kDepthwiseSide && weight.size(3) == kernels::kDepthwiseSide;
}

}  // namespace

bool has_depthwise(const at::Tensor& x, const at::Tensor& weight) {
  return x.is_cuda() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
         is_map(x, weight) && x.size(3) % kernels::kDepthwiseMultiple == 0;
}

at::Tensor depthwise(const at::Tensor& x_NHWC, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias) {
  MGM_CHECK(has_depthwise(x_NHWC, weight) && weight.scalar_type() == x_NHWC.scalar_type(),
            "depthwise convolution of ", x_NHWC.scalar_type(), ' ', x_NHWC.sizes(), " with ",
            weight.scalar_type(), ' ', weight.sizes());
  return DepthwiseFunction::apply(x_NHWC, weight, bias);
}

#else

bool has_depthwise(const at::Tensor&, const at::Tensor&) { return false; }

at::Tensor depthwise(const at::Tensor& x_NHWC, const at::Tensor&,
                     const std::optional<at::Tensor>&) {
  throw InternalError("depthwise convolution of ", x_NHWC.sizes(), " in a build without CUDA");
}

#endif

}  // namespace mgm::ops
