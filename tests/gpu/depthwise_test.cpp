// The depthwise convolution against at::conv2d: in fp64 what it must be, in its own type how near
// cuDNN comes.
#include "ops/depthwise.h"

#include "gpu/gpu.h"
#include "grad_check.h"
#include "nn/layers.h"

namespace mgm::ops {
namespace {

class DepthwiseGpu : public GpuTest {
 protected:
  static at::Tensor conv2d(const at::Tensor& x_NHWC, const at::Tensor& w, const at::Tensor& b) {
    return at::conv2d(x_NHWC.permute({0, 3, 1, 2}), w, b, 1, 3, 1, x_NHWC.size(3))
        .permute({0, 2, 3, 1});
  }
  // y, d_x, d_w, d_b of leaves with these values.
  template <class Convolution>
  static std::vector<at::Tensor> all(const Convolution& convolution,
                                     const std::vector<at::Tensor>& values, const at::Tensor& d,
                                     at::ScalarType dtype) {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& value : values) {
      leaves.push_back(value.to(dtype).detach().requires_grad_());
    }
    const at::Tensor y = convolution(leaves[0], leaves[1], leaves[2]);
    std::vector<at::Tensor> out = gradients(y, leaves, d.to(dtype));
    out.insert(out.begin(), y.detach());
    return out;
  }
  static std::vector<at::Tensor> draw(int64_t n, int64_t h, int64_t w, int64_t c,
                                      at::ScalarType dtype) {
    const auto options = at::TensorOptions(at::kCUDA);
    std::vector<at::Tensor> out{at::randn({n, h, w, c}, options), at::randn({c, 1, 7, 7}, options),
                                at::randn({c}, options), at::randn({n, h, w, c}, options)};
    for (at::Tensor& x : out) x = x.to(dtype);
    return out;
  }
};

// Maps smaller than the window, tiles cut at every side, every number of channel pairs side by
// side, and the four stages of a ConvNeXt.
TEST_F(DepthwiseGpu, EqualsConv2dAndItsGradients) {
  at::manual_seed(41);
  const char* names[] = {"y", "d_x", "d_weight", "d_bias"};
  struct Case {
    int64_t n, h, w, c;
  };
  for (const Case c : {Case{1, 1, 1, 8},
                       {2, 3, 5, 24},
                       {3, 8, 8, 384},
                       {2, 33, 17, 48},
                       {1, 9, 70, 80},
                       {2, 13, 8, 96},
                       {2, 64, 64, 96},
                       {1, 96, 96, 192},
                       {5, 24, 24, 1536}}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const std::vector<at::Tensor> values = draw(c.n, c.h, c.w, c.c, dtype);
      const at::Tensor& d = values[3];
      ASSERT_TRUE(has_depthwise(values[0], values[1]));
      const auto ours = all(depthwise, values, d, dtype);
      const auto theirs = all(conv2d, values, d, dtype);
      const auto exact = all(conv2d, values, d, at::kDouble);
      for (size_t i = 0; i < exact.size(); ++i) {
        const double error = relative_l2(ours[i], exact[i]);
        EXPECT_LE(error, 1.05 * relative_l2(theirs[i], exact[i]) + 3e-7)
            << names[i] << ' ' << dtype << ' ' << exact[0].sizes();
        // Sums are fp32 and rounded to bf16 once, which is at most 2^-8 of a value.
        EXPECT_LE(error, dtype == at::kFloat ? 2e-6 : 0x1p-8)
            << names[i] << ' ' << exact[0].sizes();
      }
    }
  }
}

TEST_F(DepthwiseGpu, AMapHasTheSameBitsBesideOthersAndTwice) {
  at::manual_seed(42);
  const std::vector<at::Tensor> values = draw(5, 31, 22, 48, at::kBFloat16);
  const auto together = all(depthwise, values, values[3], at::kBFloat16);
  const auto again = all(depthwise, values, values[3], at::kBFloat16);
  for (size_t i = 0; i < together.size(); ++i) EXPECT_TRUE(together[i].equal(again[i])) << i;
  for (int64_t n = 0; n < 5; ++n) {
    const auto alone = all(depthwise, {values[0].slice(0, n, n + 1), values[1], values[2]},
                           values[3].slice(0, n, n + 1), at::kBFloat16);
    EXPECT_TRUE(alone[0][0].equal(together[0][n])) << n;
    EXPECT_TRUE(alone[1][0].equal(together[1][n])) << n;
  }
}

TEST_F(DepthwiseGpu, AnyLayoutNoPictureAndNoBias) {
  at::manual_seed(43);
  const std::vector<at::Tensor> values = draw(2, 12, 9, 16, at::kFloat);
  const at::Tensor nchw = values[0].permute({0, 3, 1, 2}).contiguous().permute({0, 2, 3, 1});
  const at::Tensor x = nchw.detach().requires_grad_(), w = values[1];  // w is frozen
  ASSERT_FALSE(x.is_contiguous());
  const at::Tensor y = depthwise(x, w, {});
  const at::Tensor d = values[3].permute({0, 3, 1, 2}).contiguous().permute({0, 2, 3, 1});
  const at::Tensor expected = conv2d(x.to(at::kDouble), w.to(at::kDouble), {});
  EXPECT_TRUE(near_l2(y, expected, 1e-6));
  EXPECT_TRUE(
      near_l2(gradients(y, {x}, d)[0], gradients(expected, {x}, d.to(at::kDouble))[0], 1e-6));

  const std::vector<at::Tensor> none = draw(0, 12, 9, 16, at::kFloat);
  const auto empty = all(depthwise, none, none[3], at::kFloat);
  EXPECT_EQ(empty[0].sizes(), none[0].sizes());
  EXPECT_EQ(empty[2].abs().sum().item<float>(), 0);
}

// A number of channels the kernel does not take goes where it went before.
TEST_F(DepthwiseGpu, TheLayerTakesEveryWidth) {
  at::manual_seed(44);
  for (const int64_t c : {12, 16}) {
    const std::vector<at::Tensor> values = draw(2, 10, 11, c, at::kFloat);
    EXPECT_EQ(has_depthwise(values[0], values[1]), c == 16);
    EXPECT_FALSE(has_depthwise(values[0].cpu(), values[1].cpu()));
    Conv2d layer("conv", "conv", {c, c, 7, 1, 3, c, true}, constant_init(0));
    for (Param* p : layer.params()) p->value = values[p->spec.shape.size() == 4 ? 1 : 2];
    EXPECT_TRUE(near_l2(layer(values[0]), conv2d(values[0], values[1], values[2]), 1e-6)) << c;
  }
}

}  // namespace
}  // namespace mgm::ops
