#include "ops/gated.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "ops/stream.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const char* approximation(GateKind kind) { return kind == GateKind::kGelu ? "none" : "tanh"; }

at::Tensor activate(const at::Tensor& x, GateKind kind) {
  return kind == GateKind::kSilu ? at::silu(x) : at::gelu(x, approximation(kind));
}

at::Tensor activate_backward(const at::Tensor& d, const at::Tensor& x, GateKind kind) {
  return kind == GateKind::kSilu ? at::silu_backward(d, x)
                                 : at::gelu_backward(d, x, approximation(kind));
}

#ifdef MGM_WITH_CUDA

bool has_kernel(const at::Tensor& x) {
  return x.is_cuda() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

template <class T>
kernels::GatedRows<T> problem(const at::Tensor& gate, const at::Tensor& up, GateKind kind) {
  kernels::GatedRows<T> out;
  out.rows = gate.size(0);
  out.width = gate.size(1);
  out.kind = kind;
  out.gate = static_cast<const T*>(gate.const_data_ptr());
  out.up = static_cast<const T*>(up.const_data_ptr());
  out.gate_stride = gate.stride(0);
  out.up_stride = up.stride(0);
  return out;
}

template <class T>
at::Tensor run(const at::Tensor& gate, const at::Tensor& up, GateKind kind) {
  const at::Tensor y = at::empty(gate.sizes(), gate.options());
  kernels::GatedRows<T> rows = problem<T>(gate, up, kind);
  rows.y = static_cast<T*>(y.mutable_data_ptr());
  const DeviceStream device(gate);
  kernels::gated_rows_cuda(rows, device.stream());
  return y;
}

template <class T>
variable_list run_backward(const at::Tensor& d, const at::Tensor& gate, const at::Tensor& up,
                           GateKind kind) {
  const at::Tensor d_gate = at::empty(gate.sizes(), gate.options()), d_up = at::empty_like(d_gate);
  kernels::GatedRows<T> rows = problem<T>(gate, up, kind);
  rows.d_y = static_cast<const T*>(d.const_data_ptr());
  rows.d_gate = static_cast<T*>(d_gate.mutable_data_ptr());
  rows.d_up = static_cast<T*>(d_up.mutable_data_ptr());
  const DeviceStream device(gate);
  kernels::gated_rows_backward_cuda(rows, device.stream());
  return {d_gate, d_up, at::Tensor()};
}

#endif

at::Tensor together(const at::Tensor& x) { return x.stride(1) == 1 ? x : x.contiguous(); }

struct Gated : torch::autograd::Function<Gated> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate_any,
                            const at::Tensor& up_any, int64_t kind_number) {
    const at::Tensor gate = together(gate_any), up = together(up_any);
    const auto kind = static_cast<GateKind>(kind_number);
    ctx->save_for_backward({gate, up});
    ctx->saved_data["kind"] = kind_number;
#ifdef MGM_WITH_CUDA
    if (has_kernel(gate)) {
      return gate.scalar_type() == at::kFloat ? run<float>(gate, up, kind)
                                              : run<kernels::Bf16>(gate, up, kind);
    }
#endif
    return activate(gate, kind).mul_(up);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate = saved[0], &up = saved[1], d = gradients[0].contiguous();
    const auto kind = static_cast<GateKind>(ctx->saved_data["kind"].toInt());
#ifdef MGM_WITH_CUDA
    if (has_kernel(gate)) {
      return gate.scalar_type() == at::kFloat ? run_backward<float>(d, gate, up, kind)
                                              : run_backward<kernels::Bf16>(d, gate, up, kind);
    }
#endif
    const at::Tensor d_up = activate(gate, kind).mul_(d);
    return {activate_backward(d * up, gate, kind), d_up, at::Tensor()};
  }
};

}  // namespace

at::Tensor gated(const at::Tensor& gate_TI, const at::Tensor& up_TI, GateKind kind) {
  MGM_CHECK(gate_TI.dim() == 2 && gate_TI.sizes() == up_TI.sizes() &&
                gate_TI.scalar_type() == up_TI.scalar_type() && gate_TI.device() == up_TI.device(),
            "gated product of ", gate_TI.scalar_type(), ' ', gate_TI.sizes(), " and ",
            up_TI.scalar_type(), ' ', up_TI.sizes());
  return Gated::apply(gate_TI, up_TI, static_cast<int64_t>(kind));
}

}  // namespace mgm::ops
