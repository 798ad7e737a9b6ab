// The kernels that do several steps in one pass: the bits of the steps one by one on the same GPU.
#include "fused_steps.h"
#include "gpu/gpu.h"
#include "grad_check.h"
#include "ops/gated.h"
#include "ops/rotary.h"

namespace mgm::ops {
namespace {

class FusedGpu : public GpuTest {
 protected:
  static at::Tensor draw(std::vector<int64_t> shape, at::ScalarType dtype) {
    return at::randn(shape, at::kCUDA).to(dtype).requires_grad_();
  }
};

// Rows lie apart as in a projection of q, k and v at once; widths with and without vector loads.
TEST_F(FusedGpu, RotaryHasTheBitsOfItsSteps) {
  at::manual_seed(31);
  struct Case {
    int64_t rows, heads, kv_heads, width, rotated;
  };
  for (const Case c : {Case{37, 4, 4, 128, 128},
                       {37, 9, 3, 64, 64},
                       {5, 8, 1, 256, 256},
                       {11, 4, 2, 96, 48},
                       {3, 2, 2, 20, 12},
                       {3, 2, 1, 10, 6},
                       {0, 2, 1, 8, 8}}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor half = at::randn({c.rows, 1, c.rotated / 2}, at::kCUDA) * 3;
      const at::Tensor angle = at::cat({half, half}, -1);
      const at::Tensor cos = angle.cos().to(dtype), sin = angle.sin().to(dtype);
      const at::Tensor all = draw({c.rows, c.heads + 2 * c.kv_heads, c.width}, dtype);
      const auto parts = all.split_with_sizes({c.heads, c.kv_heads, c.kv_heads}, 1);
      const RotatedHeads fused = rotate_heads(parts[0], parts[1], cos, sin);
      const at::Tensor q = rotate_in_steps(parts[0], cos, sin);
      const at::Tensor k = rotate_in_steps(parts[1], cos, sin);
      EXPECT_TRUE(fused.q.equal(q)) << dtype << ' ' << c.width;
      EXPECT_TRUE(fused.k.equal(k)) << dtype << ' ' << c.width;
      const at::Tensor d_q = at::randn_like(q), d_k = at::randn_like(k);
      const auto gradient = [&](const at::Tensor& a, const at::Tensor& b) {
        return gradients((a * d_q).sum() + (b * d_k).sum(), {all}, at::ones({}, a.options()))[0];
      };
      EXPECT_TRUE(gradient(fused.q, fused.k).equal(gradient(q, k))) << dtype << ' ' << c.width;
    }
  }
}

// A product and a sum may be contracted in one kernel and not in the other, so a last bit may fall
// either way: values to that bit, gradients no farther from fp64 than those of the steps.
TEST_F(FusedGpu, GatedProductIsThatOfItsSteps) {
  at::manual_seed(32);
  for (const GateKind kind : kGateKinds) {
    for (const std::vector<int64_t>& shape :
         {std::vector<int64_t>{64, 1536}, {33, 44}, {7, 13}, {1, 1}, {0, 8}}) {
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        for (const bool apart : {false, true}) {
          const at::Tensor both = draw({shape[0], 2 * shape[1]}, dtype);
          const auto halves = both.chunk(2, -1);
          const at::Tensor gate = apart ? halves[0] : halves[0].contiguous();
          const at::Tensor up = apart ? halves[1] : halves[1].contiguous();
          const at::Tensor d = at::randn(shape, at::kCUDA).to(dtype);
          const at::Tensor fused = gated(gate, up, kind), steps = gated_in_steps(gate, up, kind);
          EXPECT_TRUE(near_l2(fused, steps, dtype == at::kFloat ? 1e-7 : 1e-4)) << dtype;
          const at::Tensor wide = both.detach().to(at::kDouble).requires_grad_();
          const auto exact_halves = wide.chunk(2, -1);
          const at::Tensor exact = gradients(gated_in_steps(exact_halves[0], exact_halves[1], kind),
                                             {wide}, d.to(at::kDouble))[0];
          const double ours = relative_l2(gradients(fused, {both}, d)[0], exact);
          const double theirs = relative_l2(gradients(steps, {both}, d)[0], exact);
          EXPECT_LE(ours, 1.05 * theirs + 1e-7) << dtype << ' ' << shape[1];
        }
      }
    }
  }
}

}  // namespace
}  // namespace mgm::ops
