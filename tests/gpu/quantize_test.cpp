// Quantisation on the GPU has the bits of its CPU twin.
#include <ATen/ATen.h>

#include "gpu/gpu.h"
#include "grad_check.h"
#include "ops/packed_weight.h"

namespace mgm {
namespace {

class QuantizeGpu : public GpuTest {};

void expect_same(const PackedWeight& gpu, const PackedWeight& cpu, const std::string& what) {
  EXPECT_TRUE(gpu.codes.is_cuda());
  EXPECT_TRUE(at::equal(gpu.codes.cpu(), cpu.codes)) << what;
  EXPECT_TRUE(at::equal(gpu.scales.cpu(), cpu.scales)) << what;
  EXPECT_EQ(gpu.offset, cpu.offset) << what;
  if (cpu.maxima.defined()) {
    EXPECT_TRUE(at::equal(gpu.maxima.cpu(), cpu.maxima)) << what;
  }
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    EXPECT_TRUE(at::equal(ops::unpack_weight(gpu, dtype).cpu(), ops::unpack_weight(cpu, dtype)))
        << what << " to " << dtype;
  }
}

TEST_F(QuantizeGpu, HasTheBitsOfTheCpu) {
  at::manual_seed(51);
  for (const WeightFormat format : {WeightFormat::kNf4, WeightFormat::kInt8}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 1},
                                    {3, 5},
                                    {1, 64},
                                    {7, 67},
                                    {130, 128},
                                    {4096, 11008}}) {
        at::Tensor weight = at::randn({out, in}) * 0.02;
        weight.select(0, out / 2).zero_();
        if (out > 1) weight[0][0] = 30;  // an outlier
        weight = weight.to(dtype);
        expect_same(ops::pack_weight(weight.cuda(), format), ops::pack_weight(weight, format),
                    cat(out, " x ", in, " of ", at::toString(dtype), ", format ", int(format)));
      }
    }
  }
}

TEST_F(QuantizeGpu, LinearAndItsGradientAreThoseOfTheDequantisedMatrix) {
  at::manual_seed(52);
  for (const WeightFormat format : {WeightFormat::kNf4, WeightFormat::kInt8}) {
    const PackedWeight packed = ops::pack_weight(at::randn({96, 160}).cuda(), format);
    const at::Tensor dense = ops::unpack_weight(packed, at::kBFloat16);
    const at::Tensor x = at::randn({12, 160}).cuda().to(at::kBFloat16).requires_grad_();
    const at::Tensor y = ops::packed_linear(x, packed), expected = at::linear(x, dense);
    const at::Tensor d_out = at::randn_like(y);
    EXPECT_TRUE(at::equal(y, expected));
    EXPECT_TRUE(near_l2(gradients(y, {x}, d_out)[0], gradients(expected, {x}, d_out)[0], 1e-2));
  }
}

}  // namespace
}  // namespace mgm
