#include "ops/grouped_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/error.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kAlign = 8;  // bf16 elements in 16 bytes

// Calls body(expert, first row, rows) for every expert.
template <class Body>
void for_experts(const at::Tensor& ends, const Body& body) {
  const int32_t* end = ends.const_data_ptr<int32_t>();
  int64_t begin = 0;
  for (int64_t e = 0; e < ends.size(0); ++e) {
    body(e, begin, end[e] - begin);
    begin = end[e];
  }
}

// x [R, K] by expert times w [E, K, N]: [R, N].
at::Tensor rows_product(const at::Tensor& x, const at::Tensor& w_EKN, const at::Tensor& ends) {
  if (x.is_cuda() && x.size(0) > 0) return at::_grouped_mm(x, w_EKN, ends);
  at::Tensor out = at::empty({x.size(0), w_EKN.size(2)}, x.options());
  if (x.size(0) == 0) return out;
  for_experts(ends, [&](int64_t e, int64_t begin, int64_t rows) {
    at::Tensor part = out.narrow(0, begin, rows);
    at::mm_out(part, x.narrow(0, begin, rows), w_EKN[e]);
  });
  return out;
}

// Per expert the transpose of a [R, N] times x [R, K], over its rows: [E, N, K]. An expert without
// rows has zeros; of the layouts of at::_grouped_mm this one, transposed times row-major, allows
// it.
at::Tensor weight_product(const at::Tensor& a, const at::Tensor& x, const at::Tensor& ends) {
  if (x.size(0) == 0) return at::zeros({ends.size(0), a.size(1), x.size(1)}, x.options());
  if (x.is_cuda()) return at::_grouped_mm(a.t(), x, ends);
  at::Tensor out = at::empty({ends.size(0), a.size(1), x.size(1)}, x.options());
  for_experts(ends, [&](int64_t e, int64_t begin, int64_t rows) {
    at::Tensor part = out[e];
    at::mm_out(part, a.narrow(0, begin, rows).t(), x.narrow(0, begin, rows));
  });
  return out;
}

// The view of StackedWeights.
at::Tensor stacked_view(const std::vector<at::Tensor>& weights) {
  const at::Tensor& first = weights.front();
  const auto offset = [&](size_t i) { return weights[i].storage_offset(); };
  const int64_t stride = weights.size() > 1 ? offset(1) - offset(0) : first.numel();
  if (first.dim() != 2 || stride < first.numel()) return {};
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& w = weights[i];
    if (!w.is_contiguous() || w.sizes() != first.sizes() || w.dtype() != first.dtype() ||
        w.storage().unsafeGetStorageImpl() != first.storage().unsafeGetStorageImpl() ||
        offset(i) != offset(0) + static_cast<int64_t>(i) * stride) {
      return {};
    }
  }
  return first.detach().as_strided(
      {static_cast<int64_t>(weights.size()), first.size(0), first.size(1)},
      {stride, first.size(1), 1});
}

struct GroupedLinear : torch::autograd::Function<GroupedLinear> {
  // `stacked_EON`: the view of `weights`, which are there for their gradients.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_any, const at::Tensor& ends,
                            const at::Tensor& stacked_EON, at::TensorList weights) {
    const at::Tensor x = x_any.contiguous();
    // Needed for the gradients of each other alone. The view of the weights is made again in
    // backward: recomputation hands saved leaves over, and where parameters come and go their
    // storage is filled by then.
    const bool weights_train = weights.front().requires_grad();
    variable_list saved = {ends, weights_train ? x : at::Tensor()};
    if (x_any.requires_grad()) saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["weights_train"] = weights_train;
    return rows_product(x, stacked_EON.transpose(1, 2), ends);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &ends = saved[0], &x = saved[1];
    const at::Tensor d_out = gradients[0].contiguous();  // the kernel takes no stride of 0
    variable_list out(3 + static_cast<size_t>(ends.size(0)));
    if (saved.size() > 2) {
      const at::Tensor stacked_EON = stacked_view({saved.begin() + 2, saved.end()});
      MGM_CHECK(stacked_EON.defined(), "weights that lay in one storage no longer do");
      out[0] = rows_product(d_out, stacked_EON, ends);
    }
    if (ctx->saved_data["weights_train"].toBool()) {
      const at::Tensor d_weights = weight_product(d_out, x, ends);
      for (int64_t e = 0; e < ends.size(0); ++e) out[size_t(3 + e)] = d_weights[e];
    }
    return out;
  }
};

}  // namespace

StackedWeights stack_weights(std::vector<at::Tensor> weights) {
  at::Tensor view = stacked_view(weights);
  return {std::move(weights), std::move(view)};
}

bool has_grouped_kernel(const at::Tensor& x, const StackedWeights& weights) {
  const auto bf16_on_gpu = [](const at::Tensor& t) {
    return t.is_cuda() && t.scalar_type() == at::kBFloat16;
  };
  const at::Tensor& view = weights.view;
  return view.defined() && bf16_on_gpu(x) && bf16_on_gpu(view) && view.size(1) % kAlign == 0 &&
         view.size(2) % kAlign == 0 && view.stride(0) % kAlign == 0 &&
         view.storage_offset() % kAlign == 0;
}

at::Tensor grouped_linear(const at::Tensor& x, const StackedWeights& weights,
                          const at::Tensor& ends) {
  const std::vector<at::Tensor>& each = weights.each;
  MGM_CHECK(x.dim() == 2 && ends.dim() == 1 && ends.scalar_type() == at::kInt &&
                ends.device() == x.device() && ends.size(0) == static_cast<int64_t>(each.size()),
            "grouped product of rows ", x.sizes(), ", ", each.size(), " weights and ends ",
            ends.sizes());
  MGM_CHECK(weights.view.defined(), "grouped product of ", each.size(),
            " weights that do not lie evenly in one storage");
  const auto trained = std::count_if(each.begin(), each.end(),
                                     [](const at::Tensor& w) { return w.requires_grad(); });
  MGM_CHECK(trained == 0 || trained == ends.size(0), "grouped product of ", each.size(),
            " weights of which ", trained, " train: must be all or none");
  return GroupedLinear::apply(x, ends, weights.view, at::TensorList(each));
}

}  // namespace mgm::ops
