// Comparing tensors and gradients in tests: relative L2 with the worst element named, and numeric
// gradients by central differences in float64.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "base/strings.h"

namespace mgm {

// ||actual - expected|| / ||expected||, in float64; infinite if either holds a NaN or an infinity.
inline double relative_l2(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor a = actual.detach().to(at::kCPU, at::kDouble);
  const at::Tensor e = expected.detach().to(at::kCPU, at::kDouble);
  const double error = (a - e).norm().item<double>(), norm = e.norm().item<double>();
  if (!std::isfinite(error) || !std::isfinite(norm)) return std::numeric_limits<double>::infinity();
  return error == 0 ? 0 : error / std::max(norm, std::numeric_limits<double>::min());
}

inline testing::AssertionResult near_l2(const at::Tensor& actual, const at::Tensor& expected,
                                        double tolerance) {
  if (!actual.defined() || !expected.defined()) {
    return testing::AssertionFailure() << "undefined tensor";
  }
  if (actual.sizes() != expected.sizes()) {
    return testing::AssertionFailure() << cat("sizes ", actual.sizes(), " and ", expected.sizes());
  }
  const double error = relative_l2(actual, expected);
  if (error <= tolerance) return testing::AssertionSuccess();
  const at::Tensor a = actual.detach().to(at::kCPU, at::kDouble).flatten();
  const at::Tensor e = expected.detach().to(at::kCPU, at::kDouble).flatten();
  const int64_t worst = at::nan_to_num(a - e, INFINITY).abs().argmax().item<int64_t>();
  return testing::AssertionFailure()
         << strf("relative L2 %.3g > %.3g; worst at %lld: %.9g, expected %.9g", error, tolerance,
                 static_cast<long long>(worst), a[worst].item<double>(), e[worst].item<double>());
}

// d sum(d_out * out) / d inputs; zeros where an input is not used.
inline std::vector<at::Tensor> gradients(const at::Tensor& out,
                                         const std::vector<at::Tensor>& inputs,
                                         const at::Tensor& d_out) {
  auto grads = torch::autograd::grad({out}, inputs, {d_out}, /*retain_graph=*/true,
                                     /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) grads[i] = at::zeros_like(inputs[i]);
  }
  return grads;
}

using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// Compares autograd's gradients of sum(w * f(inputs)), w fixed and random, with fourth-order
// central differences over every element of every input (float64).
inline void check_numeric_gradient(const TensorFunction& f, std::vector<at::Tensor> inputs,
                                   double tolerance = 1e-8, double step = 1e-3) {
  for (at::Tensor& x : inputs) x = x.detach().to(at::kDouble).clone().requires_grad_();
  const at::Tensor out = f(inputs);
  const at::Tensor weight = at::randn_like(out.detach());
  const std::vector<at::Tensor> analytic = gradients(out, inputs, weight);
  const at::AutoGradMode no_grad(false);
  const auto value = [&] { return (f(inputs) * weight).sum().item<double>(); };
  for (size_t i = 0; i < inputs.size(); ++i) {
    const at::Tensor numeric = at::zeros_like(inputs[i]);
    const at::Tensor flat = inputs[i].view({-1}), slots = numeric.view({-1});
    for (int64_t j = 0; j < flat.numel(); ++j) {
      const double x = flat[j].item<double>();
      double d = 0;
      for (const auto& [at, factor] :
           {std::pair{-2.0, 1.0}, {-1.0, -8.0}, {1.0, 8.0}, {2.0, -1.0}}) {
        flat[j].fill_(x + at * step);
        d += factor * value();
      }
      flat[j].fill_(x);
      slots[j].fill_(d / (12 * step));
    }
    EXPECT_TRUE(near_l2(analytic[i], numeric, tolerance)) << "input " << i;
  }
}

}  // namespace mgm
