#include "ops/gated.h"

#include <gtest/gtest.h>

#include "fused_steps.h"
#include "grad_check.h"

namespace mgm::ops {
namespace {

TEST(Gated, HasTheGradientOfItsValue) {
  at::manual_seed(3);
  for (const GateKind kind : kGateKinds) {
    check_numeric_gradient(
        [&](const std::vector<at::Tensor>& x) { return gated(x[0], x[1], kind); },
        {at::randn({3, 5}), at::randn({3, 5})});
  }
}

TEST(Gated, HasTheBitsOfItsSteps) {
  at::manual_seed(4);
  for (const GateKind kind : kGateKinds) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
      // Halves of one projection, as Phi-3 has them, and tensors of their own.
      const at::Tensor both = at::randn({7, 22}).to(dtype).requires_grad_();
      const at::Tensor d = at::randn({7, 11}).to(dtype);
      const auto halves = both.chunk(2, -1);
      const at::Tensor y = gated(halves[0], halves[1], kind);
      const at::Tensor steps = gated_in_steps(halves[0], halves[1], kind);
      EXPECT_TRUE(y.equal(steps)) << dtype;
      EXPECT_TRUE(gradients(y, {both}, d)[0].equal(gradients(steps, {both}, d)[0])) << dtype;
    }
  }
}

TEST(Gated, RefusesShapesThatDiffer) {
  EXPECT_ANY_THROW(gated(at::zeros({2, 3}), at::zeros({2, 4}), GateKind::kSilu));
  EXPECT_ANY_THROW(gated(at::zeros({2, 3}), at::zeros({2, 3}, at::kDouble), GateKind::kSilu));
}

}  // namespace
}  // namespace mgm::ops
