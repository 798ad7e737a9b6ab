// The AdamW kernel beside the operations torch.optim.AdamW makes (single tensor, foreach False) and
// beside ATen's fused kernel.
#include <ATen/ATen.h>

#include "grad_check.h"
#include "kernels/adamw.h"

namespace mgm {
namespace {

struct State {
  at::Tensor p, m, v;
};

State random_state(int64_t n) { return {at::randn({n}), at::zeros({n}), at::zeros({n})}; }

State clone(const State& s) { return {s.p.clone(), s.m.clone(), s.v.clone()}; }

void torch_step(State& s, const at::Tensor& g, const kernels::AdamWScalars& a) {
  const double t = static_cast<double>(a.step);
  s.p.mul_(1 - a.lr * a.weight_decay);
  s.m.lerp_(g, 1 - a.beta1);
  s.v.mul_(a.beta2).addcmul_(g, g, 1 - a.beta2);
  const double correction1 = 1 - std::pow(a.beta1, t);
  const double root_correction2 = std::sqrt(1 - std::pow(a.beta2, t));
  const at::Tensor denominator = (s.v.sqrt() / root_correction2).add_(a.eps);
  s.p.addcdiv_(s.m, denominator, -a.lr / correction1);
}

void kernel_step(State& s, const at::Tensor& g, const kernels::AdamWScalars& a) {
  kernels::AdamWBuffers<float> b;
  b.n = g.numel();
  b.master = s.p.mutable_data_ptr<float>();
  b.exp_avg = s.m.mutable_data_ptr<float>();
  b.exp_avg_sq = s.v.mutable_data_ptr<float>();
  b.grad = g.const_data_ptr<float>();
  kernels::adamw_cpu(b, a, kernels::serial_for);
}

// The largest difference in units of the last place of the expected value.
double worst_ulp(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor next = at::nextafter(expected.abs(), at::full_like(expected, INFINITY));
  const at::Tensor ulp = next.to(at::kDouble) - expected.abs().to(at::kDouble);
  return ((actual.to(at::kDouble) - expected.to(at::kDouble)).abs() / ulp).max().item<double>();
}

TEST(AdamWKernel, EqualsTorchWithinAFewUlpPerStep) {
  at::manual_seed(1);
  const int64_t n = 10007;
  State mine = random_state(n);
  kernels::AdamWScalars a{1e-3, 0.9, 0.999, 1e-8, 0.05, 1};
  for (a.step = 1; a.step <= 5; ++a.step) {
    const at::Tensor g = at::randn({n}) * 0.01;
    State theirs = clone(mine);  // each step from the same state: differences do not pile up
    State fused = clone(mine);
    kernel_step(mine, g, a);
    torch_step(theirs, g, a);
    const at::Tensor step = at::full({}, static_cast<float>(a.step - 1));
    at::TensorList none;
    at::_fused_adamw_({fused.p}, {g}, {fused.m}, {fused.v}, none, {step.add(1)}, a.lr, a.beta1,
                      a.beta2, a.weight_decay, a.eps, /*amsgrad=*/false, /*maximize=*/false);
    // ATen contracts products and sums into FMAs; a cancelling lerp or sum can show it as a few
    // ulp.
    EXPECT_LE(worst_ulp(mine.v, theirs.v), 1.5);
    EXPECT_TRUE(near_l2(mine.m, theirs.m, 6e-8));
    EXPECT_TRUE(near_l2(mine.p, theirs.p, 6e-8));
    EXPECT_TRUE(near_l2(mine.m, fused.m, 6e-8));
    EXPECT_TRUE(near_l2(mine.p, fused.p, 6e-8));
    EXPECT_TRUE(near_l2(mine.v, fused.v, 2e-7));
  }
}

}  // namespace
}  // namespace mgm
