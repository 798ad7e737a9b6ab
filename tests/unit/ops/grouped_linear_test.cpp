#include "ops/grouped_linear.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "grad_check.h"

namespace mgm {
namespace {

// `experts` matrices [out, in] as a parameter group holds them: leaves of one storage, aligned,
// with something else between them.
std::vector<at::Tensor> weights_of(int64_t experts, int64_t out, int64_t in, at::ScalarType dtype,
                                   bool train = true) {
  const int64_t stride = (out * in + 15) / 16 * 16 + 32;
  const at::Tensor flat = at::randn({16 + experts * stride}, at::kDouble).to(dtype);
  std::vector<at::Tensor> weights;
  for (int64_t e = 0; e < experts; ++e) {
    at::Tensor leaf = at::empty({0}, flat.options());
    leaf.set_(flat.storage(), 16 + e * stride, {out, in});
    weights.push_back(leaf.requires_grad_(train));
  }
  return weights;
}

at::Tensor ends_of(const std::vector<int64_t>& counts) {
  return at::tensor(counts, at::kLong).cumsum(0).to(at::kInt);
}

at::Tensor loop(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                const std::vector<int64_t>& counts) {
  std::vector<at::Tensor> parts;
  int64_t begin = 0;
  for (size_t e = 0; e < counts.size(); ++e) {
    parts.push_back(at::linear(x.narrow(0, begin, counts[e]), weights[e]));
    begin += counts[e];
  }
  return at::cat(parts);
}

const std::vector<std::vector<int64_t>> kCounts = {{3, 5, 2}, {0, 7, 0}, {11, 0, 0},
                                                   {0, 0, 1}, {0, 0, 0}, {64, 1, 33}};

TEST(GroupedLinear, IsTheLoopOverExperts) {
  at::manual_seed(61);
  for (const std::vector<int64_t>& counts : kCounts) {
    const int64_t rows = counts[0] + counts[1] + counts[2];
    const auto weights = weights_of(3, 8, 24, at::kDouble);
    const at::Tensor x = at::randn({rows, 24}, at::kDouble).requires_grad_();
    const at::Tensor y = ops::grouped_linear(x, weights, ends_of(counts));
    const at::Tensor want = loop(x, weights, counts);
    EXPECT_TRUE(near_l2(y, want, 1e-14)) << counts;
    std::vector<at::Tensor> inputs = {x};
    inputs.insert(inputs.end(), weights.begin(), weights.end());
    // A gradient without strides of its own, as that of a sum is.
    for (const at::Tensor& d_out : {at::randn_like(want), at::ones({1, 1}, at::kDouble)}) {
      const auto got = gradients(y, inputs, d_out.expand_as(y));
      const auto expected = gradients(want, inputs, d_out.expand_as(y));
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_TRUE(near_l2(got[i], expected[i], 1e-13)) << counts << ", input " << i;
      }
      for (size_t e = 0; e < counts.size(); ++e) {
        EXPECT_EQ(got[1 + e].abs().sum().item<double>() == 0, counts[e] == 0) << counts;
      }
    }
  }
}

TEST(GroupedLinear, Gradient) {
  at::manual_seed(62);
  const auto product = [](const std::vector<at::Tensor>& in) {
    return ops::grouped_linear(in[0], {in[1][0], in[1][1], in[1][2]}, ends_of({2, 0, 3}));
  };
  check_numeric_gradient(product, {at::randn({5, 4}), at::randn({3, 3, 4})});
}

// What is frozen, and what nothing upstream asks for, has no gradient.
TEST(GroupedLinear, ComputesOnlyTheGradientsAskedFor) {
  at::manual_seed(63);
  const at::Tensor ends = ends_of({2, 3});
  const auto frozen = weights_of(2, 8, 8, at::kDouble, /*train=*/false);
  const at::Tensor x = at::randn({5, 8}, at::kDouble).requires_grad_();
  ops::grouped_linear(x, frozen, ends).sum().backward();
  EXPECT_TRUE(near_l2(x.grad(),
                      gradients(loop(x, frozen, {2, 3}).sum(), {x}, at::ones({}, at::kDouble))[0],
                      1e-13));
  const auto trained = weights_of(2, 8, 8, at::kDouble);
  const at::Tensor data = at::randn({5, 8}, at::kDouble);
  ops::grouped_linear(data, trained, ends).sum().backward();
  EXPECT_TRUE(trained[0].grad().defined() && trained[1].grad().defined());
  EXPECT_FALSE(ops::grouped_linear(data, frozen, ends).requires_grad());
}

// The layouts that the GPU's kernel is called with are those that at::_grouped_mm takes; on the CPU
// it checks them too, and computes in a loop.
TEST(GroupedLinear, TheTwinIsATensGroupedProduct) {
  at::manual_seed(64);
  for (const std::vector<int64_t>& counts : kCounts) {
    const int64_t rows = counts[0] + counts[1] + counts[2];
    if (rows == 0) continue;  // never reaches the kernel
    const auto weights = weights_of(3, 16, 24, at::kFloat);
    const at::Tensor x = at::randn({rows, 24}).requires_grad_(), ends = ends_of(counts);
    const at::Tensor y = ops::grouped_linear(x, weights, ends),
                     stacked = ops::stacked_view(weights);
    const at::Tensor d_out = at::randn_like(y);
    EXPECT_TRUE(near_l2(y, at::_grouped_mm(x.detach(), stacked.transpose(1, 2), ends), 1e-6))
        << counts;
    const auto got = gradients(y, {x, weights[0], weights[1], weights[2]}, d_out);
    EXPECT_TRUE(near_l2(got[0], at::_grouped_mm(d_out, stacked, ends), 1e-6)) << counts;
    const at::Tensor d_weights = at::_grouped_mm(d_out.t(), x.detach(), ends);
    for (int64_t e = 0; e < 3; ++e) {
      EXPECT_TRUE(near_l2(got[static_cast<size_t>(1 + e)], d_weights[e], 1e-6)) << counts;
    }
  }
}

TEST(StackedView, SharesTheStorageOrIsNot) {
  at::manual_seed(65);
  auto weights = weights_of(3, 4, 6, at::kFloat);
  const at::Tensor view = ops::stacked_view(weights);
  ASSERT_TRUE(view.defined());
  EXPECT_EQ(view.sizes(), at::IntArrayRef({3, 4, 6}));
  for (int64_t e = 0; e < 3; ++e) {
    EXPECT_EQ(view[e].const_data_ptr(), weights[static_cast<size_t>(e)].const_data_ptr());
  }
  EXPECT_TRUE(ops::stacked_view({weights[1]}).defined());
  EXPECT_FALSE(ops::stacked_view({weights[0], weights[2], weights[1]}).defined());
  EXPECT_FALSE(ops::stacked_view({weights[0], weights[0]}).defined());
  EXPECT_FALSE(ops::stacked_view({weights[0], weights[1], at::randn({4, 6})}).defined());
  EXPECT_FALSE(ops::stacked_view({weights[0].t(), weights[1].t()}).defined());
  EXPECT_FALSE(ops::stacked_view({weights[0], weights[1].view({6, 4})}).defined());
  // The CPU has no kernel, whatever the type.
  EXPECT_FALSE(ops::has_grouped_kernel(at::randn({2, 8}).to(at::kBFloat16),
                                       weights_of(2, 8, 8, at::kBFloat16)));
  EXPECT_THROW(ops::grouped_linear(at::randn({2, 6}), weights, ends_of({1, 1})), InternalError);
}

}  // namespace
}  // namespace mgm
