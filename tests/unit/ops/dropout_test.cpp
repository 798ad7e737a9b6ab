// The gradient of dropout by counters, and its precisions.
#include "ops/dropout.h"

#include <gtest/gtest.h>

#include "grad_check.h"

namespace mgm {
namespace {

ops::RowCounters counters(int64_t rows) {
  return {at::arange(rows).floor_divide(4) + 9, at::arange(rows).remainder(4)};
}

TEST(DropoutRows, GradientIsNumeric) {
  const ops::RowCounters rows = counters(6);
  check_numeric_gradient(
      [&](const std::vector<at::Tensor>& in) {
        return ops::dropout_rows(in[0] * in[1], rows, 3, 0.4);
      },
      {at::randn({6, 7}), at::randn({6, 7})});
}

TEST(DropoutRows, PrecisionsDropTheSame) {
  const at::Tensor x = at::rand({12, 33}, at::kDouble) + 0.5;
  const at::Tensor wide = ops::dropout_rows(x, counters(12), 3, 0.25);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const at::Tensor y = ops::dropout_rows(x.to(type), counters(12), 3, 0.25);
    EXPECT_EQ(y.scalar_type(), type);
    EXPECT_TRUE(at::equal(y.eq(0), wide.eq(0)));
    EXPECT_TRUE(near_l2(y, wide, type == at::kFloat ? 1e-6 : 5e-3));
  }
  EXPECT_GT(wide.eq(0).sum().item<int64_t>(), 0);
}

TEST(DropoutRows, NoRowsAndRowsThatAreNotContiguous) {
  EXPECT_EQ(ops::dropout_rows(at::rand({0, 5}), counters(0), 3, 0.25).size(0), 0);
  const at::Tensor x = at::rand({6, 10});
  EXPECT_TRUE(at::equal(ops::dropout_rows(x.t(), counters(10), 3, 0.25),
                        ops::dropout_rows(x.t().contiguous(), counters(10), 3, 0.25)));
}

}  // namespace
}  // namespace mgm
