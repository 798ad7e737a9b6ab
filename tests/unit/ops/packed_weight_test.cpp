// Linears of packed weights against at::linear on the dequantised matrix.
#include "ops/packed_weight.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "grad_check.h"

namespace mgm {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kNf4, WeightFormat::kInt8};

TEST(PackedWeight, TakesTheBytesItIsPlannedFor) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{96, 160}, {7, 9}, {1, 1}, {256, 512}}) {
    for (const WeightFormat format : kFormats) {
      const PackedWeight packed = ops::pack_weight(at::randn({out, in}), format);
      EXPECT_EQ(packed.nbytes(), packed_bytes(format, out * in, out)) << out << " x " << in;
    }
  }
  EXPECT_NEAR(double(packed_bytes(WeightFormat::kNf4, 4096 * 11008, 4096)) * 8 / (4096 * 11008),
              4.127, 0.001);
}

TEST(PackedWeight, ComesBackNearAndTheSameInEveryPrecision) {
  at::manual_seed(1);
  const at::Tensor weight = at::randn({33, 70}) * 0.02;
  for (const WeightFormat format : kFormats) {
    const PackedWeight packed = ops::pack_weight(weight, format);
    const at::Tensor back = ops::unpack_weight(packed, at::kFloat);
    EXPECT_TRUE(near_l2(back, weight, format == WeightFormat::kNf4 ? 0.11 : 0.01));
    EXPECT_FALSE(near_l2(back, weight, format == WeightFormat::kNf4 ? 0.05 : 0.002));
    EXPECT_TRUE(at::equal(ops::unpack_weight(packed, at::kBFloat16), back.to(at::kBFloat16)));
    // Of a bf16 matrix: what its values say.
    const at::Tensor narrow = weight.to(at::kBFloat16);
    EXPECT_TRUE(
        at::equal(ops::unpack_weight(ops::pack_weight(narrow, format), at::kFloat),
                  ops::unpack_weight(ops::pack_weight(narrow.to(at::kFloat), format), at::kFloat)));
  }
  EXPECT_THROW(ops::pack_weight(weight.to(at::kDouble), WeightFormat::kNf4), InternalError);
}

TEST(PackedWeight, LinearAndItsGradientAreThoseOfTheDequantisedMatrix) {
  at::manual_seed(2);
  for (const WeightFormat format : kFormats) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const PackedWeight packed = ops::pack_weight(at::randn({21, 34}), format);
      const at::Tensor dense = ops::unpack_weight(packed, dtype);
      const at::Tensor x = at::randn({5, 34}).to(dtype).requires_grad_();
      const at::Tensor d_out = at::randn({5, 21}).to(dtype);
      const at::Tensor y = ops::packed_linear(x, packed), expected = at::linear(x, dense);
      EXPECT_TRUE(at::equal(y, expected));
      EXPECT_TRUE(at::equal(gradients(y, {x}, d_out)[0], gradients(expected, {x}, d_out)[0]));
    }
  }
}

TEST(PackedWeight, NoRowsAndSeveralDimensions) {
  const PackedWeight packed = ops::pack_weight(at::randn({6, 10}), WeightFormat::kNf4);
  EXPECT_EQ(ops::packed_linear(at::randn({0, 10}), packed).sizes(), (at::IntArrayRef{0, 6}));
  const at::Tensor x = at::randn({2, 3, 10});
  EXPECT_TRUE(near_l2(ops::packed_linear(x, packed).flatten(0, 1),
                      ops::packed_linear(x.flatten(0, 1), packed), 1e-6));
  EXPECT_THROW(ops::packed_linear(at::randn({2, 9}), packed), InternalError);
}

}  // namespace
}  // namespace mgm
