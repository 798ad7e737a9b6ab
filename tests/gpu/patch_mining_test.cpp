#include "ops/patch_mining.h"

#include <chrono>
#include <cstdio>

#include "gpu/gpu.h"
#include "grad_check.h"
#include "mining_cases.h"

namespace mgm::ops {
namespace {

const at::Device kCuda(at::kCUDA);

struct Outcome {
  MiningResult result;
  Tensors grads;  // stages, u
};

Outcome run_on(at::Device device, const Tensors& base, const MiningView& view,
               const at::Tensor& d) {
  Tensors x;
  for (const at::Tensor& t : base) x.push_back(t.to(device).detach().requires_grad_());
  Outcome out;
  out.result = patch_mining({x.begin(), x.begin() + 4}, x[4], view);
  out.grads = gradients(out.result.pooled, x, d.to(device));
  return out;
}

Tensors make_inputs(const MiningCase& c, const MiningView& view, at::ScalarType dtype) {
  Tensors inputs;
  for (const at::Tensor& stage : random_stages(c, at::kFloat)) inputs.push_back(stage.to(dtype));
  const int64_t channels = sum(c.channels);
  inputs.push_back(at::randn({c.batch, view.queries(), channels}) *
                   (2 / std::sqrt(static_cast<double>(channels))));
  return inputs;
}

void expect_twins(const MiningCase& c, const MiningView& view, at::ScalarType dtype) {
  const Tensors inputs = make_inputs(c, view, dtype);
  const at::Tensor d = at::randn({c.batch, view.queries(), sum(c.channels)});
  const Outcome cpu = run_on(at::kCPU, inputs, view, d), gpu = run_on(kCuda, inputs, view, d);
  // Both compute in float32 with sums in different orders; each is within 1e-5 of the exact result.
  EXPECT_TRUE(near_l2(gpu.result.pooled, cpu.result.pooled, 2e-5)) << c << ' ' << dtype;
  EXPECT_TRUE(near_l2(gpu.result.attention, cpu.result.attention, 2e-5)) << c << ' ' << dtype;
  for (size_t i = 0; i < 5; ++i) {
    // Gradients of bfloat16 maps are rounded at the end; a last bit may fall either way.
    const double tolerance = i < 4 && dtype == at::kBFloat16 ? 2e-3 : 2e-5;
    EXPECT_TRUE(near_l2(gpu.grads[i], cpu.grads[i], tolerance)) << c << ' ' << dtype << ' ' << i;
  }
}

class MiningGpu : public GpuTest {};

TEST_F(MiningGpu, EqualsItsCpuTwin) {
  at::manual_seed(21);
  for (const MiningCase& c : kMiningCases) {
    for (const MiningView& view : views_of(c.geometry)) {
      expect_twins(c, view, at::kFloat);
      expect_twins(c, view, at::kBFloat16);
    }
  }
}

// Channel counts that are multiples of four take the vector loads; ConvNeXt-L's and -B's are among
// them.
TEST_F(MiningGpu, EqualsItsCpuTwinWithVectorLoads) {
  at::manual_seed(22);
  const std::vector<MiningCase> cases = {
      {"small", 2, {1, false, 3, 8}, {24, 12, 6, 3}, {8, 16, 24, 40}},
      {"grid2_global", 1, {2, true, 2, 8}, {32, 16, 8, 4}, {4, 12, 132, 260}},
      {"floored", 1, {1, false, 12, 9}, {108, 54, 27, 13}, {128, 256, 512, 1024}},
      {"large_768", 1, {1, false, 24, 8}, {192, 96, 48, 24}, {192, 384, 768, 1536}}};
  for (const MiningCase& c : cases) {
    for (const MiningView& view : views_of(c.geometry)) {
      expect_twins(c, view, at::kFloat);
      expect_twins(c, view, at::kBFloat16);
    }
  }
}

TEST_F(MiningGpu, RepeatsBitForBit) {
  at::manual_seed(23);
  const MiningCase c{"", 2, {2, true, 2, 8}, {32, 16, 8, 4}, {32, 64, 128, 256}};
  for (const MiningView& view : views_of(c.geometry)) {
    const Tensors inputs = make_inputs(c, view, at::kBFloat16);
    const at::Tensor d = at::randn({2, view.queries(), 480});
    const Outcome first = run_on(kCuda, inputs, view, d);
    for (int i = 0; i < 3; ++i) {
      const Outcome again = run_on(kCuda, inputs, view, d);
      EXPECT_TRUE(at::equal(again.result.pooled, first.result.pooled));
      for (size_t k = 0; k < 5; ++k) EXPECT_TRUE(at::equal(again.grads[k], first.grads[k])) << k;
    }
  }
}

TEST_F(MiningGpu, NonFiniteScoresPoisonTheirQueryOnly) {
  at::manual_seed(24);
  const MiningCase c{"", 1, {1, false, 2, 4}, {8, 4, 2, 1}, {2, 3, 4, 5}};
  const MiningView view = views_of(c.geometry)[0];
  Tensors inputs = make_inputs(c, view, at::kFloat);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    at::Tensor u = inputs[4].clone();
    u[0][2][5] = bad;
    Tensors stages;
    for (size_t s = 0; s < 4; ++s) stages.push_back(inputs[s].to(kCuda));
    const at::Tensor pooled = patch_mining(stages, u.to(kCuda), view).pooled.cpu();
    for (int64_t q = 0; q < 4; ++q) {
      EXPECT_EQ(pooled[0][q].isnan().all().item<bool>(), q == 2);
      EXPECT_EQ(pooled[0][q].isnan().any().item<bool>(), q == 2);
    }
  }
  inputs[0].select(-1, 0).fill_(0.1);
  inputs[0][0][6][2][0] = -10;  // overflows one score of query 2 to -infinity
  inputs[4].zero_();
  inputs[4].select(-1, 0).fill_(1e38);
  Tensors stages;
  for (size_t s = 0; s < 4; ++s) stages.push_back(inputs[s].to(kCuda));
  const at::Tensor pooled = patch_mining(stages, inputs[4].to(kCuda), view).pooled.cpu();
  for (int64_t q = 0; q < 4; ++q) EXPECT_EQ(pooled[0][q].isnan().all().item<bool>(), q == 2);
}

MiningParams to(const MiningParams& p, at::TensorOptions o) {
  const auto move = [&](const MiningProjection& m) {
    return MiningProjection{m.norm_weight.to(o), m.norm_bias.to(o), m.linear_weight.to(o),
                            m.linear_bias.to(o)};
  };
  return {move(p.query), move(p.key), move(p.value)};
}

// The two forms beside each other on the GPU. In bfloat16 both are measured against the literal
// form in float64: the absorbed one must not be clearly the worse one (it rounds the moved query
// once more; measured 1.2 to 1.3 times the literal form's error).
TEST_F(MiningGpu, FormsAgree) {
  at::manual_seed(25);
  const MiningCase c{"", 2, {2, true, 4, 8}, {64, 32, 16, 8}, {24, 48, 96, 192}};
  const MiningGeometry& g = c.geometry;
  const Tensors stages = random_stages(c);
  const at::Tensor lr = at::randn({c.batch * g.views(), 16, 96}, kDouble);
  const MiningParams params = random_params(96, 360, 64, kDouble);
  const auto mined = [&](MiningForm form, at::ScalarType dtype, at::Device device) {
    const auto options = at::TensorOptions(dtype).device(device);
    Tensors maps;
    for (const at::Tensor& s : stages) maps.push_back(s.to(at::kBFloat16).to(options));
    return mine(form, lr.to(at::kBFloat16).to(options), maps,
                to(to(params, at::kBFloat16), options), g)
        .tokens;
  };
  const at::Tensor exact = mined(MiningForm::kReference, at::kDouble, at::kCPU);
  EXPECT_TRUE(near_l2(mined(MiningForm::kAbsorbed, at::kFloat, kCuda), exact, 1e-5));
  EXPECT_TRUE(near_l2(mined(MiningForm::kReference, at::kFloat, kCuda), exact, 1e-5));
  const double absorbed = relative_l2(mined(MiningForm::kAbsorbed, at::kBFloat16, kCuda), exact);
  const double literal = relative_l2(mined(MiningForm::kReference, at::kBFloat16, kCuda), exact);
  std::printf("bfloat16 mined tokens, relative L2: absorbed %.2e, literal %.2e\n", absorbed,
              literal);
  EXPECT_LE(absorbed, 1e-2);
  EXPECT_LE(absorbed, literal * 1.5);
}

// Prints what one step costs at full width; passes as long as it runs.
TEST_F(MiningGpu, FullWidthTimes) {
  const int64_t batch = 8;
  const MiningCase c{"", batch, {1, false, 24, 8}, {192, 96, 48, 24}, {192, 384, 768, 1536}};
  const MiningView view = views_of(c.geometry)[0];
  const auto options = at::TensorOptions(at::kBFloat16).device(kCuda);
  for (const bool train_maps : {false, true}) {
    Tensors stages;
    for (size_t s = 0; s < 4; ++s) {
      stages.push_back(at::randn({batch, c.sizes[s], c.sizes[s], c.channels[s]}, options)
                           .requires_grad_(train_maps));
    }
    const at::Tensor u =
        (at::randn({batch, 576, 2880}, options.dtype(at::kFloat)) * 0.02).requires_grad_();
    const at::Tensor d = at::randn_like(u.detach());
    Tensors inputs = {u};
    if (train_maps) inputs.insert(inputs.end(), stages.begin(), stages.end());
    const auto time_ms = [&](bool backward) {
      const auto once = [&] {
        const at::Tensor pooled = patch_mining(stages, u, view).pooled;
        if (backward) torch::autograd::grad({pooled}, inputs, {d});
      };
      const auto finish = [] { at::zeros({1}, at::TensorOptions(kCuda)).item<float>(); };
      for (int i = 0; i < 3; ++i) once();
      finish();
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 10; ++i) once();
      finish();
      return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
                 .count() /
             10;
    };
    const double forward = time_ms(false), both = time_ms(true);
    std::printf(
        "mining 768 px, batch %d, bfloat16%s: forward %.3f ms, forward and backward %.3f ms\n",
        static_cast<int>(batch), train_maps ? ", maps trained" : "", forward, both);
  }
}

}  // namespace
}  // namespace mgm::ops
