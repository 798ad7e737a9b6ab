#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/rng.h"

namespace mgm::kernels {
namespace {

struct State {
  std::vector<float> p, m, v, g;
  explicit State(size_t n) : p(n), m(n), v(n), g(n) {
    fill_normal(p.data(), n, 1, 0, 0, 1);
    fill_normal(g.data(), n, 2, 0, 0, 0.01);
  }
  AdamWBuffers<float> buffers() {
    AdamWBuffers<float> b;
    b.n = static_cast<int64_t>(p.size());
    b.master = p.data();
    b.exp_avg = m.data();
    b.exp_avg_sq = v.data();
    b.grad = g.data();
    return b;
  }
};

// torch.optim.AdamW's formula in fp64.
void reference(std::vector<double>& p, std::vector<double>& m, std::vector<double>& v,
               const std::vector<double>& g, const AdamWScalars& s) {
  const double t = static_cast<double>(s.step);
  for (size_t i = 0; i < p.size(); ++i) {
    p[i] *= 1 - s.lr * s.weight_decay;
    m[i] = s.beta1 * m[i] + (1 - s.beta1) * g[i];
    v[i] = s.beta2 * v[i] + (1 - s.beta2) * g[i] * g[i];
    p[i] -= s.lr / (1 - std::pow(s.beta1, t)) * m[i] /
            (std::sqrt(v[i]) / std::sqrt(1 - std::pow(s.beta2, t)) + s.eps);
  }
}

TEST(AdamW, FollowsTheFormulaOverSteps) {
  for (const size_t n : {1, 7, 8, 4095, 4096, 10007}) {
    State state(n);
    std::vector<double> p(state.p.begin(), state.p.end()), m(n), v(n);
    AdamWScalars s{2e-3, 0.9, 0.98, 1e-8, 0.1, 1};
    for (s.step = 1; s.step <= 20; ++s.step) {
      fill_normal(state.g.data(), n, 3, static_cast<uint64_t>(s.step) * n, 0, 0.01);
      reference(p, m, v, {state.g.begin(), state.g.end()}, s);
      adamw_cpu(state.buffers(), s, serial_for);
    }
    for (size_t i = 0; i < n; ++i) {
      EXPECT_NEAR(state.p[i], p[i], 2e-6 * std::abs(p[i]) + 2e-7) << i;
      EXPECT_NEAR(state.m[i], m[i], 2e-6 * std::abs(m[i]) + 1e-9) << i;
      EXPECT_NEAR(state.v[i], v[i], 2e-6 * v[i]) << i;
    }
  }
}

TEST(AdamW, GradScaleCopyAndBf16Gradients) {
  const size_t n = 1003;
  State scaled(n), plain(n);
  const float factor = 0.25f;
  std::vector<Bf16> copy(n), grad(n);
  for (size_t i = 0; i < n; ++i) {
    grad[i] = to_bf16(plain.g[i]);
    plain.g[i] = to_float(grad[i]) * factor;
  }
  const AdamWScalars s{1e-3, 0.9, 0.999, 1e-8, 0.01, 3};
  adamw_cpu(plain.buffers(), s, serial_for);
  AdamWBuffers<Bf16> b;
  b.n = n;
  b.master = scaled.p.data();
  b.exp_avg = scaled.m.data();
  b.exp_avg_sq = scaled.v.data();
  b.grad = grad.data();
  b.copy = copy.data();
  b.grad_scale = &factor;
  adamw_cpu(b, s, serial_for);
  EXPECT_EQ(scaled.p, plain.p);
  EXPECT_EQ(scaled.m, plain.m);
  EXPECT_EQ(scaled.v, plain.v);
  for (size_t i = 0; i < n; ++i) EXPECT_EQ(copy[i].bits, to_bf16(scaled.p[i]).bits);
}

TEST(AdamW, SkipTouchesNothing) {
  State state(100);
  const State before = state;
  std::vector<Bf16> copy(100, Bf16{7});
  float skip = 1;
  AdamWBuffers<float> b = state.buffers();
  b.skip = &skip;
  b.copy = copy.data();
  const AdamWScalars s{1e-2, 0.9, 0.999, 1e-8, 0.1, 1};
  adamw_cpu(b, s, serial_for);
  EXPECT_EQ(state.p, before.p);
  EXPECT_EQ(state.m, before.m);
  EXPECT_EQ(state.v, before.v);
  for (const Bf16 c : copy) EXPECT_EQ(c.bits, 7);
  skip = 0;
  adamw_cpu(b, s, serial_for);
  EXPECT_NE(state.p, before.p);
}

// The rate of step 1 of a warm-up is 0: moments move, parameters do not.
TEST(AdamW, ZeroRate) {
  State state(33);
  const State before = state;
  adamw_cpu(state.buffers(), AdamWScalars{0, 0.9, 0.999, 1e-8, 0.1, 1}, serial_for);
  EXPECT_EQ(state.p, before.p);
  EXPECT_NE(state.m, before.m);
}

// A block of a 7B keeps every core of a host busy, a layer norm one.
TEST(AdamW, ThreadsGetShares) {
  State block(4 << 20), norm(4096);
  int64_t shares = 0;
  const auto count = [&](int64_t n, int64_t grain, const RangeBody&) { shares = n / grain; };
  const AdamWScalars s{1e-3, 0.9, 0.999, 1e-8, 0.01, 2};
  adamw_cpu(block.buffers(), s, count);
  EXPECT_GE(shares, 128);
  adamw_cpu(norm.buffers(), s, count);
  EXPECT_EQ(shares, 0);
}

TEST(AdamW, SameBitsHoweverTheLoopIsCut) {
  const auto in_threads = [](int64_t n, int64_t, const RangeBody& body) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < n; ++i) threads.emplace_back([&body, i] { body(i, i + 1); });
    for (std::thread& t : threads) t.join();
  };
  State a(20011), b(20011);
  const AdamWScalars s{1e-3, 0.9, 0.999, 1e-8, 0.01, 2};
  adamw_cpu(a.buffers(), s, serial_for);
  adamw_cpu(b.buffers(), s, in_threads);
  EXPECT_EQ(a.p, b.p);
  EXPECT_EQ(a.v, b.v);
}

TEST(AdamW, StepsCountFromOne) {
  State state(1);
  EXPECT_THROW(adamw_cpu(state.buffers(), AdamWScalars{1, 0.9, 0.999, 1e-8, 0, 0}, serial_for),
               InternalError);
}

}  // namespace
}  // namespace mgm::kernels
