#include "ops/resize.h"

#include "base/error.h"
#include "grad_check.h"

namespace mgm::ops {
namespace {

TEST(ResizeBilinear, ForwardBitEqualAndBackwardEqualToAten) {
  at::manual_seed(3);
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{13, 27},
                                {3, 27},
                                {27, 9},
                                {32, 16},
                                {1, 5},
                                {5, 1},
                                {7, 7},
                                {54, 108}}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor x = at::randn({2, 3, in, in + 2}, dtype).requires_grad_();
      const at::Tensor expected = at::upsample_bilinear2d(x, {out, out + 1}, false);
      const at::Tensor actual = resize_bilinear(x, out, out + 1);
      EXPECT_TRUE(at::equal(actual, expected));
      const at::Tensor d = at::randn_like(expected.detach());
      EXPECT_TRUE(near_l2(gradients(actual, {x}, d)[0], gradients(expected, {x}, d)[0],
                          dtype == at::kDouble ? 1e-14 : 1e-6))
          << in << " -> " << out;
    }
  }
}

TEST(ResizeBilinear, NumericGradient) {
  at::manual_seed(4);
  check_numeric_gradient(
      [](const std::vector<at::Tensor>& x) { return resize_bilinear(x[0], 7, 4); },
      {at::randn({1, 2, 3, 5})});
}

TEST(ResizeBilinear, RefusesOtherTypes) {
  EXPECT_THROW(resize_bilinear(at::zeros({1, 1, 2, 2}, at::kBFloat16), 4, 4), InternalError);
  EXPECT_THROW(resize_bilinear(at::zeros({2, 2}), 4, 4), InternalError);
}

}  // namespace
}  // namespace mgm::ops
