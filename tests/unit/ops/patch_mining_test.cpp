#include "ops/patch_mining.h"

#include <ATen/Parallel.h>

#include "base/error.h"
#include "grad_check.h"
#include "mining_cases.h"

namespace mgm::ops {
namespace {

// ---- the literal composition, from ATen operations alone ----------------------------------------

at::Tensor literal_map(const Tensors& stages, const MiningView& view) {
  Tensors maps;
  for (const at::Tensor& stage : stages) {
    const at::Tensor nchw = stage.permute({0, 3, 1, 2});
    maps.push_back(at::upsample_bilinear2d(nchw, {stages[0].size(1), stages[0].size(1)}, false));
  }
  const at::Tensor map = at::cat(maps, 1);
  if (view.downscale == 1) return map;
  const double factor = 1.0 / static_cast<double>(view.downscale);
  return at::upsample_bilinear2d(map, c10::optional<at::IntArrayRef>(), false,
                                 std::vector<double>{factor, factor});
}

// [B, Q, p * p, C]: windows cut one by one.
at::Tensor literal_windows(const Tensors& stages, const MiningView& v) {
  const at::Tensor map = literal_map(stages, v);
  Tensors windows;
  for (int64_t tr = 0; tr < v.tiles; ++tr) {
    for (int64_t tc = 0; tc < v.tiles; ++tc) {
      for (int64_t i = 0; i < v.patches; ++i) {
        for (int64_t j = 0; j < v.patches; ++j) {
          const at::Tensor window = map.narrow(2, (tr * v.patches + i) * v.window, v.window)
                                        .narrow(3, (tc * v.patches + j) * v.window, v.window);
          windows.push_back(window.flatten(2).transpose(1, 2));
        }
      }
    }
  }
  return at::stack(windows, 1);
}

at::Tensor literal_pooled(const Tensors& stages, const at::Tensor& u, const MiningView& view,
                          at::Tensor* attention = nullptr) {
  const at::Tensor x = literal_windows(stages, view);
  const at::Tensor normed = at::layer_norm(x, {x.size(-1)}, {}, {}, 1e-5);
  const at::Tensor a = at::softmax(at::matmul(normed, u.unsqueeze(-1)).squeeze(-1), -1);
  if (attention) *attention = a;
  return at::matmul(a.unsqueeze(2), normed).squeeze(2);
}

at::Tensor literal_projection(const at::Tensor& x, const MiningProjection& p) {
  return at::linear(at::layer_norm(x, {x.size(-1)}, p.norm_weight, p.norm_bias, 1e-5),
                    p.linear_weight, p.linear_bias);
}

// Reference semantics, one image at a time.
at::Tensor literal_mine(const at::Tensor& lr, const Tensors& stages, const MiningParams& params,
                        const MiningGeometry& g) {
  const int64_t batch = stages[0].size(0), tiles = g.grid * g.grid;
  Tensors images;
  for (int64_t b = 0; b < batch; ++b) {
    Tensors image_stages, views;
    for (const at::Tensor& stage : stages) image_stages.push_back(stage.narrow(0, b, 1));
    const auto add = [&](const at::Tensor& features, const MiningView& view) {
      const at::Tensor q = literal_projection(features, params.query);  // [Q, d]
      const at::Tensor x = literal_windows(image_stages, view)[0];      // [Q, P, C]
      const at::Tensor k = literal_projection(x, params.key);
      const at::Tensor v = literal_projection(x, params.value);
      const double root = std::sqrt(static_cast<double>(q.size(-1)));
      const at::Tensor logits = at::matmul(q.unsqueeze(1), (k / root).transpose(1, 2));
      views.push_back(at::matmul(at::softmax(logits, -1), v).squeeze(1));
    };
    if (g.global) add(lr[batch * tiles + b], {1, g.patches, g.window, g.grid});
    add(lr.narrow(0, b * tiles, tiles).flatten(0, 1), {g.grid, g.patches, g.window, 1});
    images.push_back(at::cat(views, 0));
  }
  return at::stack(images);
}

// ---- the kernel ---------------------------------------------------------------------------------

class Mining : public testing::TestWithParam<MiningCase> {};

TEST_P(Mining, KernelEqualsLiteralInFloat64) {
  at::manual_seed(7);
  const MiningCase& c = GetParam();
  Tensors inputs = random_stages(c);
  for (const MiningView& view : views_of(c.geometry)) {
    inputs.resize(4);
    inputs.push_back(at::randn({c.batch, view.queries(), sum(c.channels)}, kDouble) * 0.3);
    for (at::Tensor& x : inputs) x = x.detach().requires_grad_();
    const Tensors stages(inputs.begin(), inputs.begin() + 4);
    at::Tensor attention;
    const at::Tensor expected = literal_pooled(stages, inputs[4], view, &attention);
    const MiningResult actual = patch_mining(stages, inputs[4], view);
    EXPECT_TRUE(near_l2(actual.pooled, expected, 1e-12));
    EXPECT_TRUE(near_l2(actual.attention, attention, 1e-12));
    EXPECT_FALSE(actual.attention.requires_grad());
    const at::Tensor d = at::randn_like(expected.detach());
    const Tensors want = gradients(expected, inputs, d), got = gradients(actual.pooled, inputs, d);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_TRUE(near_l2(got[i], want[i], 1e-12)) << "input " << i;
    }
  }
}

// float32 against the literal form in float64, bfloat16 against float64 of the rounded maps:
// statistics, scores and sums are all float32, so only the maps' gradients carry bfloat16's 2^-9.
TEST_P(Mining, KernelInFloat32AndBfloat16) {
  at::manual_seed(8);
  const MiningCase& c = GetParam();
  const MiningView view = views_of(c.geometry).back();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Tensors inputs;
    for (const at::Tensor& stage : random_stages(c)) inputs.push_back(stage.to(dtype));
    inputs.push_back(at::randn({c.batch, view.queries(), sum(c.channels)}) * 0.3);
    Tensors exact;
    for (at::Tensor& x : inputs) {
      x.requires_grad_();
      exact.push_back(x.detach().to(at::kDouble).requires_grad_());
    }
    const at::Tensor expected = literal_pooled({exact.begin(), exact.begin() + 4}, exact[4], view);
    const MiningResult actual = patch_mining({inputs.begin(), inputs.begin() + 4}, inputs[4], view);
    EXPECT_EQ(actual.pooled.scalar_type(), at::kFloat);
    EXPECT_TRUE(near_l2(actual.pooled, expected, 1e-5));
    const at::Tensor d = at::randn_like(expected.detach());
    const Tensors want = gradients(expected, exact, d);
    const Tensors got = gradients(actual.pooled, inputs, d.to(at::kFloat));
    EXPECT_TRUE(near_l2(got[4], want[4], 1e-5));
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(got[i].scalar_type(), dtype);
      EXPECT_TRUE(near_l2(got[i], want[i], dtype == at::kFloat ? 1e-5 : 4e-3)) << "stage " << i;
    }
  }
}

Tensors leaves(const at::Tensor& lr, const Tensors& stages, const MiningParams& p) {
  Tensors out = stages;
  for (const MiningProjection* m : {&p.query, &p.key, &p.value}) {
    out.insert(out.end(), {m->norm_weight, m->linear_weight, m->linear_bias, m->norm_bias});
  }
  out.push_back(lr);
  for (at::Tensor& x : out) x.requires_grad_();
  return out;
}
constexpr size_t kKeyLinearBias = 4 + 4 + 2, kKeyNormBias = 4 + 4 + 3;  // places in leaves()

TEST_P(Mining, BothFormsEqualTheReferenceInFloat64) {
  at::manual_seed(9);
  const MiningCase& c = GetParam();
  const MiningGeometry& g = c.geometry;
  const int64_t lr_width = 13, d = 10;
  const Tensors stages = random_stages(c);
  const at::Tensor lr = at::randn({c.batch * g.views(), g.patches * g.patches, lr_width}, kDouble);
  const MiningParams params = random_params(lr_width, sum(c.channels), d, kDouble);
  const Tensors inputs = leaves(lr, stages, params);
  const at::Tensor expected = literal_mine(lr, stages, params, g);
  const at::Tensor d_out = at::randn_like(expected.detach());
  const Tensors want = gradients(expected, inputs, d_out);
  at::Tensor attention;
  for (const MiningForm form :
       {MiningForm::kAbsorbed, MiningForm::kReference, MiningForm::kReferenceNanToNum}) {
    const Mined actual = mine(form, lr, stages, params, g);
    EXPECT_TRUE(near_l2(actual.tokens, expected, 1e-12));
    const Tensors got = gradients(actual.tokens, inputs, d_out);
    for (size_t i = 0; i < want.size(); ++i) {
      if (i == kKeyLinearBias ||
          i == kKeyNormBias) {  // mathematically zero: rounding in the literal
        EXPECT_LE(got[i].norm().item<double>(),
                  1e-12 * want[kKeyLinearBias - 1].norm().item<double>());
      } else {
        EXPECT_TRUE(near_l2(got[i], want[i], 1e-12)) << "input " << i;
      }
    }
    if (attention.defined()) {
      EXPECT_TRUE(near_l2(actual.attention, attention, 1e-12));
    }
    attention = actual.attention;
    EXPECT_EQ(attention.sizes(), at::IntArrayRef({c.batch, g.tokens(), g.window * g.window}));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Mining, testing::ValuesIn(kMiningCases),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

// bfloat16 parameters, features and maps against the same numbers in float64: both forms err by
// about one rounding of the output (2^-9), the absorbed one no more than the literal one.
TEST(MiningFront, FormsInBfloat16) {
  at::manual_seed(16);
  const MiningCase c{"", 2, {2, true, 3, 4}, {24, 12, 6, 3}, {12, 24, 48, 96}};
  const MiningGeometry& g = c.geometry;
  const auto rounded = [](const at::Tensor& x, at::ScalarType dtype) {
    return x.to(at::kBFloat16).to(dtype);
  };
  const Tensors base = random_stages(c);
  const at::Tensor lr = at::randn({c.batch * g.views(), 9, 40}, kDouble);
  const MiningParams params = random_params(40, 180, 48, kDouble);
  const auto mined = [&](MiningForm form, at::ScalarType dtype) {
    Tensors stages;
    for (const at::Tensor& x : base) stages.push_back(rounded(x, dtype));
    const auto projection = [&](const MiningProjection& p) {
      return MiningProjection{rounded(p.norm_weight, dtype), rounded(p.norm_bias, dtype),
                              rounded(p.linear_weight, dtype), rounded(p.linear_bias, dtype)};
    };
    return mine(form, rounded(lr, dtype), stages,
                {projection(params.query), projection(params.key), projection(params.value)}, g)
        .tokens;
  };
  const at::Tensor exact = mined(MiningForm::kReference, at::kDouble);
  const at::Tensor absorbed = mined(MiningForm::kAbsorbed, at::kBFloat16);
  EXPECT_EQ(absorbed.scalar_type(), at::kBFloat16);
  const double error = relative_l2(absorbed, exact);
  const double literal_error = relative_l2(mined(MiningForm::kReference, at::kBFloat16), exact);
  EXPECT_LE(error, 5e-3);
  EXPECT_LE(error, 1.1 * literal_error);
  RecordProperty("absorbed", std::to_string(error));
  RecordProperty("literal", std::to_string(literal_error));
}

TEST(PatchMining, NumericGradient) {
  at::manual_seed(10);
  const MiningCase c{"", 1, {2, true, 1, 3}, {6, 3, 2, 1}, {2, 3, 1, 2}};
  for (const MiningView& view : views_of(c.geometry)) {
    Tensors inputs = random_stages(c);
    inputs.push_back(at::randn({c.batch, view.queries(), 8}, kDouble));
    check_numeric_gradient(
        [&](const Tensors& x) { return patch_mining({x[0], x[1], x[2], x[3]}, x[4], view).pooled; },
        inputs);
  }
}

// A big common offset must not eat the variance.
TEST(PatchMining, OffsetsDoNotCancelInFloat32) {
  at::manual_seed(11);
  const MiningCase c{"", 1, {1, false, 2, 4}, {8, 4, 2, 1}, {16, 16, 32, 64}};
  const MiningView view = views_of(c.geometry)[0];
  Tensors stages, exact;
  for (const at::Tensor& stage : random_stages(c, at::kFloat)) {
    stages.push_back(stage + 300);
    exact.push_back(stages.back().to(at::kDouble));
  }
  const at::Tensor u = at::randn({1, 4, 128}) * 0.3;
  // The inputs themselves keep 300 / 2^24 = 2e-5 of their deviation.
  EXPECT_TRUE(near_l2(patch_mining(stages, u, view).pooled,
                      literal_pooled(exact, u.to(at::kDouble), view), 1e-4));
}

TEST(PatchMining, NonFiniteScoresPoisonTheirQueryOnly) {
  at::manual_seed(12);
  const MiningCase c{"", 1, {1, false, 2, 4}, {8, 4, 2, 1}, {2, 3, 4, 5}};
  const MiningView view = views_of(c.geometry)[0];
  const Tensors stages = random_stages(c, at::kFloat);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    at::Tensor u = at::randn({1, 4, 14});
    u[0][2][5] = bad;
    const MiningResult result = patch_mining(stages, u, view);
    for (int64_t q = 0; q < 4; ++q) {
      EXPECT_EQ(result.pooled[0][q].isnan().all().item<bool>(), q == 2);
      EXPECT_EQ(result.attention[0][q].isnan().all().item<bool>(), q == 2);
    }
    // The same through the front: a NaN in a map reaches the tokens, unless nan_to_num hides its
    // logit.
    Tensors broken;
    for (const at::Tensor& stage : stages) broken.push_back(stage.clone());
    broken[0][0][5][6][1] = bad;
    const MiningParams params = random_params(3, 14, 4, at::kFloat);
    const at::Tensor lr = at::randn({1, 4, 3});
    for (const MiningForm form : {MiningForm::kAbsorbed, MiningForm::kReference}) {
      const at::Tensor tokens = mine(form, lr, broken, params, c.geometry).tokens;
      EXPECT_TRUE(tokens[0][3].isnan().all().item<bool>());
      EXPECT_FALSE(tokens[0].narrow(0, 0, 3).isnan().any().item<bool>());
    }
  }
}

// One score that overflows to -infinity would only get weight 0 from a plain softmax.
TEST(PatchMining, OneOverflowedScorePoisonsItsQuery) {
  at::manual_seed(15);
  const MiningCase c{"", 1, {1, false, 2, 4}, {8, 4, 2, 1}, {2, 3, 4, 5}};
  const Tensors stages = random_stages(c, at::kFloat);
  stages[0].select(-1, 0).fill_(0.1);
  stages[0][0][6][2][0] = -10;  // in the window of query 2
  at::Tensor u = at::zeros({1, 4, 14});
  u.select(-1, 0).fill_(1e38);
  const MiningResult result = patch_mining(stages, u, views_of(c.geometry)[0]);
  for (int64_t q = 0; q < 4; ++q) {
    EXPECT_EQ(result.pooled[0][q].isnan().all().item<bool>(), q == 2) << q;
  }
}

// ---- grouping and order -------------------------------------------------------------------------

// Changing one position of the stage-0 map changes exactly the query whose window holds it, and a
// position that agrees with every query wins the attention at its row-major place in the window.
TEST(MiningOrder, EveryQuerySeesExactlyItsWindow) {
  at::manual_seed(13);
  const MiningGeometry g{2, true, 2, 2};
  const int64_t side = g.map_size(), n = g.patches, p = g.window;
  const MiningCase c{"", 1, g, {side, side / 2, side / 4, 1}, {3, 3, 3, 3}};
  Tensors stages = random_stages(c, at::kFloat);
  MiningParams params = random_params(4, 12, 6, at::kFloat);
  const at::Tensor lr = at::randn({g.views(), n * n, 4});
  for (const MiningForm form : {MiningForm::kAbsorbed, MiningForm::kReference}) {
    const at::Tensor before = mine(form, lr, stages, params, g).tokens;
    for (int64_t r = 0; r < side; ++r) {
      for (int64_t col = 0; col < side; ++col) {
        const at::Tensor old = stages[0][0][r][col].clone();
        stages[0][0][r][col] += 5;
        const Mined after = mine(form, lr, stages, params, g);
        stages[0][0][r][col].copy_(old);
        // Global tokens first: the 1/2 map's position (r/2, c/2) averages four neighbours.
        const int64_t global = (r / 2 / p) * n + col / 2 / p;
        const int64_t tile = (r / (n * p)) * g.grid + col / (n * p);
        const int64_t local = n * n + tile * n * n + (r / p % n) * n + col / p % n;
        const at::Tensor changed = (after.tokens != before).any(-1)[0];
        EXPECT_EQ(changed.sum().item<int64_t>(), 2);
        EXPECT_TRUE(changed[global].item<bool>()) << r << ' ' << col;
        EXPECT_TRUE(changed[local].item<bool>()) << r << ' ' << col;
      }
    }
  }
}

TEST(MiningOrder, AttentionIsRowMajorInTheWindow) {
  const MiningView view{2, 3, 4, 1};
  const int64_t side = view.side();
  for (int64_t r = 0; r < side; r += 5) {
    for (int64_t c = 0; c < side; c += 7) {
      Tensors stages = {at::zeros({1, side, side, 2}), at::zeros({1, 12, 12, 2}),
                        at::zeros({1, 6, 6, 2}), at::zeros({1, 3, 3, 2})};
      stages[0][0][r][c][0] = 1;
      at::Tensor u = at::zeros({1, view.queries(), 8});
      u.select(-1, 0).fill_(4);
      const at::Tensor best = patch_mining(stages, u, view).attention.argmax(-1)[0];
      const int64_t tile = r / 12 * 2 + c / 12, patch = r / 4 % 3 * 3 + c / 4 % 3;
      EXPECT_EQ(best[tile * 9 + patch].item<int64_t>(), r % 4 * 4 + c % 4);
    }
  }
}

TEST(MiningOrder, ArrangePutsTheGlobalViewFirst) {
  const MiningGeometry g{2, true, 3, 1};
  const int64_t batch = 2, tiles = 4;
  // View v holds 100 v + token.
  const at::Tensor views =
      at::arange(batch * g.views()).view({-1, 1, 1}) * 100 + at::arange(9).view({1, 9, 1});
  const at::Tensor tokens = arrange_tokens(views, g).squeeze(-1);
  ASSERT_EQ(tokens.sizes(), at::IntArrayRef({2, 45}));
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t v = 0; v < 5; ++v) {
      const int64_t source = v == 0 ? batch * tiles + b : b * tiles + v - 1;
      for (int64_t t = 0; t < 9; ++t) {
        EXPECT_EQ(tokens[b][v * 9 + t].item<int64_t>(), source * 100 + t);
      }
    }
  }
  const at::Tensor same = at::rand({3, 9, 2});
  EXPECT_TRUE(at::equal(arrange_tokens(same, {1, false, 3, 1}), same));
}

TEST(PatchMining, RepeatsBitForBitWhateverTheThreads) {
  at::manual_seed(14);
  const MiningCase c{"", 2, {1, false, 3, 8}, {24, 12, 6, 3}, {5, 7, 11, 13}};
  const MiningView view = views_of(c.geometry)[0];
  Tensors inputs = random_stages(c, at::kFloat);
  inputs.push_back(at::randn({2, 9, 36}));
  for (at::Tensor& x : inputs) x.requires_grad_();
  const at::Tensor d = at::randn({2, 9, 36});
  const auto run = [&] {
    const at::Tensor out =
        patch_mining({inputs.begin(), inputs.begin() + 4}, inputs[4], view).pooled;
    Tensors all = gradients(out, inputs, d);
    all.push_back(out);
    return all;
  };
  const int threads = at::get_num_threads();
  const Tensors many = run();
  at::set_num_threads(1);
  const Tensors one = run();
  at::set_num_threads(threads);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], many[i])) << i;
}

TEST(PatchMining, RefusesWhatDoesNotFit) {
  const Tensors stages = {at::zeros({1, 8, 8, 2}), at::zeros({1, 4, 4, 2}), at::zeros({1, 2, 2, 2}),
                          at::zeros({1, 1, 1, 2})};
  const at::Tensor u = at::zeros({1, 4, 8});
  EXPECT_NO_THROW(patch_mining(stages, u, {1, 2, 4, 1}));
  EXPECT_THROW(patch_mining(stages, u, {1, 2, 3, 1}), InternalError);
  EXPECT_THROW(patch_mining(stages, at::zeros({1, 5, 8}), {1, 2, 4, 1}), InternalError);
  EXPECT_THROW(patch_mining(stages, u.to(at::kBFloat16), {1, 2, 4, 1}), InternalError);
  EXPECT_THROW(patch_mining({stages[0], stages[1]}, u, {1, 2, 4, 1}), InternalError);
  EXPECT_THROW(
      patch_mining({stages[0], stages[1], stages[2], at::zeros({1, 9, 9, 2})}, u, {1, 2, 4, 1}),
      InternalError);
  const Tensors none = {at::zeros({0, 8, 8, 2}), at::zeros({0, 4, 4, 2}), at::zeros({0, 2, 2, 2}),
                        at::zeros({0, 1, 1, 2})};
  EXPECT_EQ(patch_mining(none, at::zeros({0, 4, 8}), {1, 2, 4, 1}).pooled.numel(), 0);
}

}  // namespace
}  // namespace mgm::ops
