#include "ops/grouped_linear.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "expert_weights.h"
#include "grad_check.h"

namespace mgm {
namespace {

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
    const auto weights = expert_weights(3, 8, 24, at::kDouble);
    const at::Tensor x = at::randn({rows, 24}, at::kDouble).requires_grad_();
    const at::Tensor y = ops::grouped_linear(x, ops::stack_weights(weights), ends_of(counts));
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
    return ops::grouped_linear(in[0], ops::stack_weights({in[1][0], in[1][1], in[1][2]}),
                               ends_of({2, 0, 3}));
  };
  check_numeric_gradient(product, {at::randn({5, 4}), at::randn({3, 3, 4})});
}

// What is frozen, and what nothing upstream asks for, has no gradient.
TEST(GroupedLinear, ComputesOnlyTheGradientsAskedFor) {
  at::manual_seed(63);
  const at::Tensor ends = ends_of({2, 3});
  const auto frozen = expert_weights(2, 8, 8, at::kDouble, /*train=*/false);
  const at::Tensor x = at::randn({5, 8}, at::kDouble).requires_grad_();
  ops::grouped_linear(x, ops::stack_weights(frozen), ends).sum().backward();
  EXPECT_TRUE(near_l2(x.grad(),
                      gradients(loop(x, frozen, {2, 3}).sum(), {x}, at::ones({}, at::kDouble))[0],
                      1e-13));
  const auto trained = expert_weights(2, 8, 8, at::kDouble);
  const at::Tensor data = at::randn({5, 8}, at::kDouble);
  ops::grouped_linear(data, ops::stack_weights(trained), ends).sum().backward();
  EXPECT_TRUE(trained[0].grad().defined() && trained[1].grad().defined());
  EXPECT_FALSE(ops::grouped_linear(data, ops::stack_weights(frozen), ends).requires_grad());
}

// The layouts that the GPU's kernel is called with are those that at::_grouped_mm takes; on the CPU
// it checks them too, and computes in a loop.
TEST(GroupedLinear, TheTwinIsATensGroupedProduct) {
  at::manual_seed(64);
  for (const std::vector<int64_t>& counts : kCounts) {
    const int64_t rows = counts[0] + counts[1] + counts[2];
    if (rows == 0) continue;  // never reaches the kernel
    const auto weights = expert_weights(3, 16, 24, at::kFloat);
    const at::Tensor x = at::randn({rows, 24}).requires_grad_(), ends = ends_of(counts);
    const ops::StackedWeights stacks = ops::stack_weights(weights);
    const at::Tensor y = ops::grouped_linear(x, stacks, ends), stacked = stacks.view;
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

TEST(StackedWeights, ShareTheStorageOrHaveNoView) {
  at::manual_seed(65);
  const auto weights = expert_weights(3, 4, 6, at::kFloat);
  const at::Tensor view = ops::stack_weights(weights).view;
  ASSERT_TRUE(view.defined());
  EXPECT_EQ(view.sizes(), at::IntArrayRef({3, 4, 6}));
  for (int64_t e = 0; e < 3; ++e) {
    EXPECT_EQ(view[e].const_data_ptr(), weights[static_cast<size_t>(e)].const_data_ptr());
  }
  const auto has_view = [](std::vector<at::Tensor> w) {
    return ops::stack_weights(std::move(w)).view.defined();
  };
  EXPECT_TRUE(has_view({weights[1]}));
  EXPECT_FALSE(has_view({weights[0], weights[2], weights[1]}));
  EXPECT_FALSE(has_view({weights[0], weights[0]}));
  EXPECT_FALSE(has_view({weights[0], weights[1], at::randn({4, 6})}));
  EXPECT_FALSE(has_view({weights[0].t(), weights[1].t()}));
  EXPECT_FALSE(has_view({weights[0], weights[1].view({6, 4})}));
  // The CPU has no kernel, whatever the type.
  EXPECT_FALSE(ops::has_grouped_kernel(at::randn({2, 8}).to(at::kBFloat16),
                                       ops::stack_weights(expert_weights(2, 8, 8, at::kBFloat16))));
}

void expect_refused(const std::vector<at::Tensor>& weights, const std::string& want) {
  try {
    ops::grouped_linear(at::randn({2, 6}), ops::stack_weights(weights), ends_of({1, 0, 1}));
    ADD_FAILURE() << "taken: " << want;
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find(want), std::string::npos) << e.what();
  }
}

TEST(GroupedLinear, RefusesWeightsThatAreNoStack) {
  at::manual_seed(66);
  const auto weights = expert_weights(3, 4, 6, at::kFloat);
  expect_refused({weights[0], weights[1]}, "rows [2, 6], 2 weights and ends [3]");
  expect_refused({weights[0], weights[1], at::randn({4, 6}).requires_grad_()},
                 "3 weights that do not lie evenly in one storage");
  auto some = expert_weights(3, 4, 6, at::kFloat);
  some[0].requires_grad_(false);
  expect_refused(some, "3 weights of which 2 train: must be all or none");
  some = expert_weights(3, 4, 6, at::kFloat, /*train=*/false);
  some[2].requires_grad_(true);
  expect_refused(some, "3 weights of which 1 train: must be all or none");
}

}  // namespace
}  // namespace mgm
