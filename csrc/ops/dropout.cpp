#include "ops/dropout.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <type_traits>

#include "base/error.h"
#include "kernels/dropout.h"
#include "ops/stream.h"
#include "types/on_threads.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class T>
void run(const at::Tensor& x, const at::Tensor& y, const RowCounters& counters, uint64_t key,
         double p) {
  const kernels::DropoutRows<T> rows{x.size(0),
                                     x.size(1),
                                     static_cast<const T*>(x.const_data_ptr()),
                                     static_cast<T*>(y.mutable_data_ptr()),
                                     counters.sample.const_data_ptr<int64_t>(),
                                     counters.position.const_data_ptr<int64_t>(),
                                     key,
                                     p};
  if (!x.is_cuda()) {
    kernels::dropout_rows_cpu(rows, on_threads);
    return;
  }
#ifdef MGM_WITH_CUDA
  if constexpr (!std::is_same_v<T, double>) {
    const DeviceStream device(x);
    kernels::dropout_rows_cuda(rows, device.stream());
    return;
  }
#endif
  throw InternalError("dropout of ", x.scalar_type(), " on ", x.device());
}

at::Tensor masked(const at::Tensor& x_any, const RowCounters& counters, uint64_t key, double p) {
  const at::Tensor x = x_any.contiguous(), y = at::empty_like(x);
  switch (x.scalar_type()) {
    case at::kFloat:
      run<float>(x, y, counters, key, p);
      return y;
    case at::kDouble:
      run<double>(x, y, counters, key, p);
      return y;
    case at::kBFloat16:
      run<kernels::Bf16>(x, y, counters, key, p);
      return y;
    default:
      throw InternalError("dropout takes float32, bfloat16 or float64, got ", x.scalar_type());
  }
}

struct Dropout : torch::autograd::Function<Dropout> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& sample,
                            const at::Tensor& position, int64_t key, double p) {
    ctx->saved_data["sample"] = sample;
    ctx->saved_data["position"] = position;
    ctx->saved_data["key"] = key;
    ctx->saved_data["p"] = p;
    return masked(x, {sample, position}, static_cast<uint64_t>(key), p);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    variable_list out(5);
    out[0] = masked(gradients[0],
                    {ctx->saved_data["sample"].toTensor(), ctx->saved_data["position"].toTensor()},
                    static_cast<uint64_t>(ctx->saved_data["key"].toInt()),
                    ctx->saved_data["p"].toDouble());
    return out;
  }
};

}  // namespace

at::Tensor dropout_rows(const at::Tensor& x_TC, const RowCounters& counters, uint64_t key,
                        double p) {
  const auto fits = [&](const at::Tensor& t) {
    return t.scalar_type() == at::kLong && t.dim() == 1 && t.size(0) == x_TC.size(0) &&
           t.device() == x_TC.device() && t.is_contiguous();
  };
  MGM_CHECK(x_TC.dim() == 2 && x_TC.size(1) < int64_t{1} << 22 && p >= 0 && p < 1 &&
                fits(counters.sample) && fits(counters.position),
            "dropout ", p, " of ", x_TC.sizes(), " with counters ", counters.sample.sizes(),
            " and ", counters.position.sizes());
  return Dropout::apply(x_TC, counters.sample, counters.position, static_cast<int64_t>(key), p);
}

}  // namespace mgm::ops
