#include "ops/rotary.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "kernels/rotary.h"
#include "ops/stream.h"

namespace mgm::ops {
namespace {

at::Tensor rotate_by_steps(const at::Tensor& x_TAD, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t rotated = cos.size(-1), width = x_TAD.size(-1);
  const at::Tensor x = rotated == width ? x_TAD : x_TAD.narrow(-1, 0, rotated);
  const auto halves = x.chunk(2, -1);
  const at::Tensor out = x * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
  if (rotated == width) return out;
  return at::cat({out, x_TAD.narrow(-1, rotated, width - rotated)}, -1);
}

#ifdef MGM_WITH_CUDA

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool has_kernel(const at::Tensor& q) {
  return q.is_cuda() && (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16);
}

// Heads side by side; rows may lie apart, as in a slice of a wider projection.
at::Tensor with_heads_together(const at::Tensor& x) {
  return x.stride(2) == 1 && x.stride(1) == x.size(2) ? x : x.contiguous();
}

template <class T>
kernels::RotaryHeads<T> heads_of(const at::Tensor& x, const at::Tensor& y) {
  return {static_cast<int>(x.size(1)), x.stride(0), static_cast<const T*>(x.const_data_ptr()),
          static_cast<T*>(y.mutable_data_ptr())};
}

template <class T>
void run(const at::Tensor& q, const at::Tensor& k, const RotatedHeads& out, const at::Tensor& cos,
         const at::Tensor& sin, bool backward) {
  kernels::RotaryRows<T> rows;
  rows.rows = q.size(0);
  rows.width = static_cast<int>(q.size(2));
  rows.rotated = static_cast<int>(cos.size(-1));
  rows.cos = static_cast<const T*>(cos.const_data_ptr());
  rows.sin = static_cast<const T*>(sin.const_data_ptr());
  rows.backward = backward;
  rows.q = heads_of<T>(q, out.q);
  rows.k = heads_of<T>(k, out.k);
  const DeviceStream device(q);
  kernels::rotate_rows_cuda(rows, device.stream());
}

RotatedHeads rotate_by_kernel(const at::Tensor& q_any, const at::Tensor& k_any,
                              const at::Tensor& cos, const at::Tensor& sin, bool backward) {
  const at::Tensor q = with_heads_together(q_any), k = with_heads_together(k_any);
  const RotatedHeads out{at::empty(q.sizes(), q.options()), at::empty(k.sizes(), k.options())};
  if (q.scalar_type() == at::kFloat) {
    run<float>(q, k, out, cos, sin, backward);
  } else {
    run<kernels::Bf16>(q, k, out, cos, sin, backward);
  }
  return out;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& cos, const at::Tensor& sin) {
    ctx->saved_data["cos"] = cos;
    ctx->saved_data["sin"] = sin;
    const RotatedHeads out = rotate_by_kernel(q, k, cos, sin, /*backward=*/false);
    return {out.q, out.k};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& d) {
    const RotatedHeads out = rotate_by_kernel(d[0], d[1], ctx->saved_data["cos"].toTensor(),
                                              ctx->saved_data["sin"].toTensor(), /*backward=*/true);
    return {out.q, out.k, at::Tensor(), at::Tensor()};
  }
};

#endif

}  // namespace

RotatedHeads rotate_heads(const at::Tensor& q_TAD, const at::Tensor& k_TKD,
                          const at::Tensor& cos_T1R, const at::Tensor& sin_T1R) {
  const auto fits = [&](const at::Tensor& t) {
    return t.dim() == 3 && t.size(0) == q_TAD.size(0) && t.scalar_type() == q_TAD.scalar_type() &&
           t.device() == q_TAD.device();
  };
  MGM_CHECK(fits(q_TAD) && fits(k_TKD) && fits(cos_T1R) && fits(sin_T1R) &&
                k_TKD.size(2) == q_TAD.size(2) && cos_T1R.sizes() == sin_T1R.sizes() &&
                cos_T1R.size(1) == 1 && cos_T1R.size(2) % 2 == 0 &&
                cos_T1R.size(2) <= q_TAD.size(2) && cos_T1R.is_contiguous() &&
                sin_T1R.is_contiguous(),
            "rotary embedding of ", q_TAD.sizes(), " and ", k_TKD.sizes(), " by ", cos_T1R.sizes());
#ifdef MGM_WITH_CUDA
  if (has_kernel(q_TAD)) {
    const variable_list out = Rotate::apply(q_TAD, k_TKD, cos_T1R, sin_T1R);
    return {out[0], out[1]};
  }
#endif
  return {rotate_by_steps(q_TAD, cos_T1R, sin_T1R), rotate_by_steps(k_TKD, cos_T1R, sin_T1R)};
}

}  // namespace mgm::ops
