#include "ops/attention.h"

#include "gpu/gpu.h"
#include "grad_check.h"
#include "ops/resize.h"

namespace mgm::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

const at::Device kCuda(at::kCUDA);

SeqInfo segments(const std::vector<int64_t>& lengths, at::Device device) {
  SeqInfo seq;
  std::vector<int32_t> cu = {0};
  for (const int64_t length : lengths) {
    seq.offsets.push_back(seq.offsets.back() + length);
    seq.max_length = std::max(seq.max_length, length);
    cu.push_back(static_cast<int32_t>(seq.offsets.back()));
  }
  seq.cu_seqlens = at::tensor(cu, at::kInt).to(device);
  return seq;
}

struct Outcome {
  at::Tensor out;
  Tensors grads;
};

Outcome run(const Tensors& base, const at::Tensor& d, const std::vector<int64_t>& lengths,
            bool causal, at::TensorOptions options) {
  Tensors x;
  for (const at::Tensor& t : base) x.push_back(t.to(options).detach().requires_grad_());
  const double scale = 1 / std::sqrt(static_cast<double>(base[0].size(2)));
  Outcome out;
  out.out = attention(x[0], x[1], x[2], segments(lengths, options.device()), causal, scale);
  out.grads = gradients(out.out, x, d.to(options));
  return out;
}

// Inputs are bfloat16 numbers, so that every path sees the same ones.
Tensors random_qkv(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width) {
  Tensors out;
  for (const int64_t h : {heads, kv_heads, kv_heads, heads}) {
    out.push_back(at::randn({tokens, h, width}, kCuda).to(at::kBFloat16));
  }
  return out;
}

class AttentionGpu : public GpuTest {
 protected:
  // float64 on the same device (plain products) is the oracle.
  void expect_near(const std::vector<int64_t>& lengths, int64_t heads, int64_t kv_heads,
                   int64_t width, bool causal, at::ScalarType dtype, double tolerance) {
    int64_t tokens = 0;
    for (const int64_t length : lengths) tokens += length;
    Tensors x = random_qkv(tokens, heads, kv_heads, width);
    const at::Tensor d = x.back();
    x.pop_back();
    const Outcome exact = run(x, d, lengths, causal, at::TensorOptions(at::kDouble).device(kCuda));
    const Outcome actual = run(x, d, lengths, causal, at::TensorOptions(dtype).device(kCuda));
    EXPECT_TRUE(near_l2(actual.out, exact.out, tolerance)) << dtype << ' ' << lengths[0];
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(near_l2(actual.grads[i], exact.grads[i], 2 * tolerance))
          << dtype << ' ' << lengths[0] << ' ' << i;
    }
  }
};

TEST_F(AttentionGpu, PackedShortSegments) {
  at::manual_seed(31);
  for (const bool causal : {true, false}) {
    expect_near({17, 3, 129, 64, 1}, 8, 2, 64, causal, at::kBFloat16, 1e-2);
    expect_near({513}, 4, 4, 128, causal, at::kBFloat16, 1e-2);
    expect_near({33, 40}, 6, 3, 16, causal, at::kBFloat16, 1e-2);
    // No fused kernel takes this width. Plain products round the scores to bfloat16 (half a unit in
    // 2^8 of values up to 4) before the softmax: measured 1.1e-2.
    expect_near({33, 40}, 4, 2, 12, causal, at::kBFloat16, 2e-2);
    expect_near({17, 3, 129, 64, 1}, 8, 2, 24, causal, at::kFloat, 1e-5);
  }
}

TEST_F(AttentionGpu, LongSegmentsThroughCudnn) {
  at::manual_seed(32);
  expect_near({2048}, 8, 2, 128, true, at::kBFloat16, 1e-2);
  expect_near({1003}, 8, 8, 64, true, at::kBFloat16, 1e-2);
  expect_near({1537}, 4, 2, 64, false, at::kBFloat16, 1e-2);
  expect_near({4096, 4099}, 4, 1, 128, true, at::kBFloat16, 1e-2);
}

TEST_F(AttentionGpu, DeterministicRepeatsBitForBit) {
  at::manual_seed(33);
  const Deterministic mode;
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{300, 211, 7}, {4096}}) {
    int64_t tokens = 0;
    for (const int64_t length : lengths) tokens += length;
    Tensors x = random_qkv(tokens, 8, 2, 64);
    const at::Tensor d = x.back();
    x.pop_back();
    const auto options = at::TensorOptions(at::kBFloat16).device(kCuda);
    const Outcome first = run(x, d, lengths, true, options);
    for (int i = 0; i < 3; ++i) {
      const Outcome again = run(x, d, lengths, true, options);
      EXPECT_TRUE(at::equal(again.out, first.out));
      for (size_t k = 0; k < 3; ++k) EXPECT_TRUE(at::equal(again.grads[k], first.grads[k])) << k;
    }
  }
}

TEST_F(AttentionGpu, CacheReplaysEveryBackend) {
  at::manual_seed(34);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{30, 21, 7}, {1024}}) {
      int64_t tokens = 0;
      for (const int64_t length : lengths) tokens += length;
      Tensors x;
      for (const at::Tensor& t : random_qkv(tokens, 4, 2, 64)) {
        x.push_back(t.to(dtype).requires_grad_());
      }
      const at::Tensor d = x[3].detach();
      x.pop_back();
      const SeqInfo seq = segments(lengths, kCuda);
      AttentionCache cache;
      Tensors want;
      {
        const AttentionCacheGuard guard(cache, AttentionCacheMode::kRecord);
        want = gradients(attention(x[0], x[1], x[2], seq, true, 0.1), x, d);
      }
      const AttentionCacheGuard guard(cache, AttentionCacheMode::kReplay);
      const Tensors got = gradients(attention(x[0], x[1], x[2], seq, true, 0.1), x, d);
      // The same forward values; some backwards add with atomics.
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(near_l2(got[i], want[i], 5e-3)) << i;
    }
  }
}

TEST_F(AttentionGpu, DenseEqualsFloat64) {
  at::manual_seed(35);
  const Tensors x = {at::randn({2, 4, 577, 64}, kCuda).to(at::kBFloat16),
                     at::randn({2, 4, 577, 64}, kCuda).to(at::kBFloat16),
                     at::randn({2, 4, 577, 64}, kCuda).to(at::kBFloat16)};
  const at::Tensor exact =
      attention_dense(x[0].to(at::kDouble), x[1].to(at::kDouble), x[2].to(at::kDouble));
  EXPECT_TRUE(near_l2(attention_dense(x[0], x[1], x[2]), exact, 1e-2));
}

class ResizeGpu : public GpuTest {};

TEST_F(ResizeGpu, BackwardRunsInDeterministicModeAndEqualsTheCpu) {
  at::manual_seed(36);
  const Deterministic mode;
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{13, 27}, {24, 192}, {32, 16}, {1, 5}}) {
    const at::Tensor x = at::randn({2, 3, in, in}), d = at::randn({2, 3, out, out});
    const at::Tensor cpu = x.clone().requires_grad_(), gpu = x.to(kCuda).requires_grad_();
    const at::Tensor want = resize_bilinear(cpu, out, out), got = resize_bilinear(gpu, out, out);
    EXPECT_TRUE(at::equal(got, at::upsample_bilinear2d(gpu, {out, out}, false)));
    EXPECT_TRUE(near_l2(got, want, 1e-6));
    EXPECT_TRUE(near_l2(gradients(got, {gpu}, d.to(kCuda))[0], gradients(want, {cpu}, d)[0], 1e-6));
  }
}

}  // namespace
}  // namespace mgm::ops
