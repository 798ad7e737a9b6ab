#include "ops/rotary.h"

#include <gtest/gtest.h>

#include "fused_steps.h"
#include "grad_check.h"

namespace mgm::ops {
namespace {

struct Angles {
  Angles(int64_t rows, int64_t rotated, at::ScalarType dtype) {
    const at::Tensor half = at::randn({rows, 1, rotated / 2}, at::kDouble) * 3;
    const at::Tensor angle = at::cat({half, half}, -1);
    cos = angle.cos().to(dtype);
    sin = angle.sin().to(dtype);
  }
  at::Tensor cos, sin;
};

TEST(RotateHeads, HasTheBitsOfItsSteps) {
  at::manual_seed(5);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const int64_t rotated : {8, 4, 6}) {
      const Angles a(5, rotated, dtype);
      const at::Tensor q = at::randn({5, 3, 8}).to(dtype), k = at::randn({5, 1, 8}).to(dtype);
      const RotatedHeads out = rotate_heads(q, k, a.cos, a.sin);
      EXPECT_TRUE(out.q.equal(rotate_in_steps(q, a.cos, a.sin))) << dtype << ' ' << rotated;
      EXPECT_TRUE(out.k.equal(rotate_in_steps(k, a.cos, a.sin))) << dtype << ' ' << rotated;
    }
  }
}

// A rotation keeps the length of every pair, and turning back by the same angles undoes it.
TEST(RotateHeads, TurnsPairsByTheirAngles) {
  at::manual_seed(6);
  const Angles a(4, 6, at::kDouble);
  const at::Tensor q = at::randn({4, 2, 6}, at::kDouble), k = at::randn({4, 2, 6}, at::kDouble);
  const RotatedHeads there = rotate_heads(q, k, a.cos, a.sin);
  const RotatedHeads back = rotate_heads(there.q, there.k, a.cos, -a.sin);
  EXPECT_TRUE(near_l2(back.q, q, 1e-14));
  EXPECT_TRUE(near_l2(back.k, k, 1e-14));
  EXPECT_FALSE(near_l2(there.q, q, 0.1));
}

TEST(RotateHeads, RefusesWhatDoesNotFit) {
  const at::Tensor q = at::zeros({4, 2, 6}), cos = at::zeros({4, 1, 6});
  EXPECT_ANY_THROW(rotate_heads(q, at::zeros({3, 2, 6}), cos, cos));
  EXPECT_ANY_THROW(rotate_heads(q, q, at::zeros({4, 1, 8}), at::zeros({4, 1, 8})));
  EXPECT_ANY_THROW(rotate_heads(q, q, at::zeros({4, 1, 5}), at::zeros({4, 1, 5})));
  EXPECT_ANY_THROW(rotate_heads(q, q, cos.to(at::kDouble), cos.to(at::kDouble)));
}

}  // namespace
}  // namespace mgm::ops
