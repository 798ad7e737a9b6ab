// Where values stop being finite: named forward with the state of the inputs, and backward in the
// order gradients come.
#include "train/checking_runner.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace mgm {
namespace {

at::Tensor run_two(CheckingRunner& runner, const at::Tensor& x, const BlockBody& first,
                   const BlockBody& second) {
  return runner.run("b", runner.run("a", {x}, first), second)[0].sum();
}

const BlockBody kTwice = [](const Tensors& in) -> Tensors { return {in[0] * 2}; };

TEST(CheckingRunner, NamesTheGroupThatBreaksForward) {
  CheckingRunner runner(std::make_unique<DirectRunner>());
  std::vector<ValueCheck> checks;
  runner.watch(&checks);
  const BlockBody inverse = [](const Tensors& in) -> Tensors { return {1 / in[0]}; };
  run_two(runner, at::tensor({0.0, 4.0, -8.0}), inverse, kTwice);
  ASSERT_EQ(checks.size(), 2u);
  EXPECT_EQ(checks[0].group, "a");
  EXPECT_EQ(checks[0].numel, 3);
  EXPECT_EQ(checks[0].not_finite, 1);
  EXPECT_EQ(checks[0].bad_inputs, 0);
  EXPECT_EQ(checks[0].largest, 0.25);
  EXPECT_EQ(checks[1].group, "b");
  EXPECT_EQ(checks[1].not_finite, 1);
  EXPECT_EQ(checks[1].bad_inputs, 1);
}

TEST(CheckingRunner, NamesWhereAGradientBreaksAndCountsMicroBatches) {
  CheckingRunner runner(std::make_unique<DirectRunner>());
  std::vector<ValueCheck> checks;
  runner.watch(&checks);
  const BlockBody root = [](const Tensors& in) -> Tensors { return {in[0].sqrt()}; };
  const at::Tensor x = at::tensor({0.0, 4.0}).requires_grad_();
  for (int i = 0; i < 2; ++i) run_two(runner, x, kTwice, root).backward();
  ASSERT_EQ(checks.size(), 8u);  // two groups, forward and backward, twice
  for (size_t i = 0; i < checks.size(); ++i) {
    EXPECT_EQ(checks[i].micro_batch, static_cast<int64_t>(i / 4)) << i;
    EXPECT_EQ(checks[i].backward, i % 4 >= 2) << i;
  }
  EXPECT_EQ(checks[2].group, "b");
  EXPECT_EQ(checks[2].not_finite, 0);
  EXPECT_EQ(checks[3].group, "a");  // d sqrt at zero
  EXPECT_EQ(checks[3].not_finite, 1);
}

TEST(CheckingRunner, ChecksNothingUntilItIsTold) {
  CheckingRunner runner(std::make_unique<DirectRunner>());
  const at::Tensor x = at::tensor({1.0}).requires_grad_();
  run_two(runner, x, kTwice, kTwice).backward();
  EXPECT_EQ(x.grad().item<double>(), 4);
}

}  // namespace
}  // namespace mgm
