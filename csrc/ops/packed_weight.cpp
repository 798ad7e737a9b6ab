#include "ops/packed_weight.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "kernels/quantize.h"
#include "ops/stream.h"
#include "types/on_threads.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class T>
const T* input(const at::Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* output(const at::Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

int64_t parts(int64_t n, int64_t of) { return (n + of - 1) / of; }

// body(T()) with the element type of `dtype`.
template <class Body>
void with_weight_element(at::ScalarType dtype, const Body& body) {
  switch (dtype) {
    case at::kFloat:
      return body(float());
    case at::kBFloat16:
      return body(kernels::Bf16());
    default:
      throw InternalError("packed weights are of float32 or bfloat16, not ", dtype);
  }
}

// The CPU kernel or, beside a CUDA tensor, its twin.
template <class Problem>
void run(const at::Tensor& beside, const Problem& problem,
         void (*cpu)(const Problem&, const kernels::ParallelFor&),
         [[maybe_unused]] void (*cuda)(const Problem&, CUstream_st*)) {
#ifdef MGM_WITH_CUDA
  if (beside.is_cuda()) {
    const DeviceStream device(beside);
    cuda(problem, device.stream());
    return;
  }
#endif
  MGM_CHECK(beside.is_cpu(), "quantisation on ", beside.device());
  cpu(problem, on_threads);
}

#ifdef MGM_WITH_CUDA
#define MGM_TWINS(name, T) kernels::name##_cpu<T>, kernels::name##_cuda<T>
#else
#define MGM_TWINS(name, T) kernels::name##_cpu<T>, nullptr
#endif

template <class T>
void pack_nf4(const at::Tensor& weight, PackedWeight& out) {
  const int64_t n = weight.numel(), blocks = parts(n, kernels::kNf4Block);
  const at::TensorOptions on(weight.device());
  out.codes = at::empty({parts(n, 2)}, on.dtype(at::kByte));
  const at::Tensor maxima = at::empty({blocks}, on.dtype(at::kFloat));
  run<kernels::Nf4Quantize<T>>(
      weight, {n, input<T>(weight), output<uint8_t>(out.codes), output<float>(maxima)},
      MGM_TWINS(quantize_nf4, T));
  const at::Tensor host = maxima.cpu();
  const at::Tensor codes = at::empty({blocks}, at::kByte);
  const at::Tensor scales = at::empty({parts(blocks, kernels::kMaximaBlock)}, at::kFloat);
  out.offset = double(kernels::quantize_maxima_cpu(
      {blocks, input<float>(host), output<uint8_t>(codes), output<float>(scales)}));
  out.maxima = codes.to(weight.device());
  out.scales = scales.to(weight.device());
}

template <class T>
void pack_int8(const at::Tensor& weight, PackedWeight& out) {
  const at::TensorOptions on(weight.device());
  out.codes = at::empty({out.out, out.in}, on.dtype(at::kChar));
  out.scales = at::empty({out.out}, on.dtype(at::kFloat));
  run<kernels::Int8Quantize<T>>(
      weight,
      {out.out, out.in, input<T>(weight), output<int8_t>(out.codes), output<float>(out.scales)},
      MGM_TWINS(quantize_int8, T));
}

template <class T>
void unpack(const PackedWeight& w, const at::Tensor& out) {
  if (w.format == WeightFormat::kNf4) {
    run<kernels::Nf4Dequantize<T>>(
        w.codes,
        {w.out * w.in, input<uint8_t>(w.codes), input<uint8_t>(w.maxima), input<float>(w.scales),
         static_cast<float>(w.offset), output<T>(out)},
        MGM_TWINS(dequantize_nf4, T));
  } else {
    run<kernels::Int8Dequantize<T>>(
        w.codes, {w.out, w.in, input<int8_t>(w.codes), input<float>(w.scales), output<T>(out)},
        MGM_TWINS(dequantize_int8, T));
  }
}
#undef MGM_TWINS

struct PackedLinear : torch::autograd::Function<PackedLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const PackedWeight& weight) {
    // Not save_for_backward: recomputation would drop and remake what goes through its hooks.
    auto& saved = ctx->saved_data;
    saved["format"] = static_cast<int64_t>(weight.format);
    saved["out"] = weight.out;
    saved["in"] = weight.in;
    saved["codes"] = weight.codes;
    saved["scales"] = weight.scales;
    if (weight.maxima.defined()) saved["maxima"] = weight.maxima;
    saved["offset"] = weight.offset;
    return at::linear(x, unpack_weight(weight, x.scalar_type()));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    auto& saved = ctx->saved_data;
    PackedWeight weight;
    weight.format = static_cast<WeightFormat>(saved["format"].toInt());
    weight.out = saved["out"].toInt();
    weight.in = saved["in"].toInt();
    weight.codes = saved["codes"].toTensor();
    weight.scales = saved["scales"].toTensor();
    if (saved.count("maxima") > 0) weight.maxima = saved["maxima"].toTensor();
    weight.offset = saved["offset"].toDouble();
    const at::Tensor& d_out = gradients[0];
    return {at::matmul(d_out, unpack_weight(weight, d_out.scalar_type())), at::Tensor()};
  }
};

}  // namespace

PackedWeight pack_weight(const at::Tensor& weight_any, WeightFormat format) {
  MGM_CHECK(weight_any.dim() == 2 && format != WeightFormat::kDense, "packing of ",
            weight_any.sizes());
  const at::NoGradGuard no_grad;
  const at::Tensor weight = weight_any.contiguous();
  PackedWeight out;
  out.format = format;
  out.out = weight.size(0);
  out.in = weight.size(1);
  with_weight_element(weight.scalar_type(), [&](auto element) {
    using T = decltype(element);
    if (format == WeightFormat::kNf4) {
      pack_nf4<T>(weight, out);
    } else {
      pack_int8<T>(weight, out);
    }
  });
  return out;
}

at::Tensor unpack_weight(const PackedWeight& weight, at::ScalarType dtype) {
  const at::Tensor out =
      at::empty({weight.out, weight.in}, at::TensorOptions(weight.codes.device()).dtype(dtype));
  with_weight_element(dtype, [&](auto element) { unpack<decltype(element)>(weight, out); });
  return out;
}

at::Tensor packed_linear(const at::Tensor& x, const PackedWeight& weight) {
  MGM_CHECK(weight.defined() && x.size(-1) == weight.in && x.device() == weight.codes.device(),
            "packed weight [", weight.out, ", ", weight.in, "] and rows ", x.sizes(), " on ",
            x.device());
  return PackedLinear::apply(x, weight);
}

}  // namespace mgm::ops
