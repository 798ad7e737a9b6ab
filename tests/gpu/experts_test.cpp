// The grouped product of experts on the GPU beside the loop over them, and the whole language model
// with either.
#include <ATen/ATen.h>

#include "gpu/gpu.h"
#include "grad_check.h"
#include "model/feed_forward.h"
#include "ops/grouped_linear.h"
#include "tiny_model.h"

namespace mgm {
namespace {

class ExpertsGpu : public GpuTest {};

std::vector<at::Tensor> weights_of(int64_t experts, int64_t out, int64_t in) {
  const int64_t stride = aligned(out * in) + aligned(7);
  const at::Tensor flat =
      (at::randn({experts * stride}) / std::sqrt(double(in))).cuda().to(at::kBFloat16);
  std::vector<at::Tensor> weights;
  for (int64_t e = 0; e < experts; ++e) {
    at::Tensor leaf = at::empty({0}, flat.options());
    leaf.set_(flat.storage(), e * stride, {out, in});
    weights.push_back(leaf.requires_grad_(true));
  }
  return weights;
}

TEST_F(ExpertsGpu, GroupedProductIsTheLoopAndGivesZerosToEmptyExperts) {
  at::manual_seed(80);
  const std::vector<std::vector<int64_t>> all = {{5, 0, 130, 1},  {0, 0, 0, 17}, {512, 0, 0, 0},
                                                 {1, 1, 1, 1},    {0, 0, 0, 0},  {300, 7, 2000, 0},
                                                 {0, 257, 0, 129}};
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{64, 96}, {1408, 512}, {256, 2048}}) {
    for (const std::vector<int64_t>& counts : all) {
      const std::string what = cat(out, " x ", in, ", rows ", at::IntArrayRef(counts));
      const at::Tensor ends = at::tensor(counts, at::kLong).cuda().cumsum(0).to(at::kInt);
      const int64_t rows = ends[3].item<int64_t>();
      const auto weights = weights_of(4, out, in);
      const at::Tensor x = at::randn({rows, in}).cuda().to(at::kBFloat16).requires_grad_();
      ASSERT_TRUE(ops::has_grouped_kernel(x, weights)) << what;
      const at::Tensor y = ops::grouped_linear(x, weights, ends);
      std::vector<at::Tensor> parts;
      int64_t begin = 0;
      for (size_t e = 0; e < counts.size(); ++e) {
        parts.push_back(at::linear(x.narrow(0, begin, counts[e]), weights[e]));
        begin += counts[e];
      }
      const at::Tensor want = at::cat(parts), d_out = at::randn_like(want);
      EXPECT_TRUE(near_l2(y, want, 2e-3)) << what;
      std::vector<at::Tensor> inputs = {x};
      inputs.insert(inputs.end(), weights.begin(), weights.end());
      const auto got = gradients(y, inputs, d_out), expected = gradients(want, inputs, d_out);
      for (size_t i = 0; i < inputs.size(); ++i) {
        EXPECT_TRUE(near_l2(got[i], expected[i], 4e-3)) << what << ", input " << i;
        // One order of additions, whatever runs beside it.
        EXPECT_TRUE(at::equal(got[i], gradients(y, inputs, d_out)[i])) << what << ", input " << i;
      }
      for (size_t e = 0; e < counts.size(); ++e) {
        if (counts[e] > 0) continue;
        EXPECT_EQ(got[1 + e].abs().max().item<double>(), 0) << what << ", expert " << e;
      }
    }
  }
}

TEST_F(ExpertsGpu, WidthsAndPlacesThatTheKernelCannotTakeAreToldApart) {
  const at::Tensor x = at::randn({4, 64}).cuda().to(at::kBFloat16);
  EXPECT_TRUE(ops::has_grouped_kernel(x, weights_of(3, 8, 64)));
  EXPECT_FALSE(ops::has_grouped_kernel(x, weights_of(3, 12, 64)));
  EXPECT_FALSE(ops::has_grouped_kernel(x.to(at::kFloat), weights_of(3, 8, 64)));
  auto apart = weights_of(3, 8, 64);
  apart[1] = at::randn({8, 64}).cuda().to(at::kBFloat16);
  EXPECT_FALSE(ops::has_grouped_kernel(x, apart));
}

// A block's experts as a run has them: the path is grouped, and the same numbers come of it.
TEST_F(ExpertsGpu, ABlockTakesTheGroupedPathAndAgreesWithTheLoop) {
  LlmConfig c = tiny_config().model.llm;
  c.arch = LlmArch::kMixtral;
  c.hidden_size = 128;
  c.intermediate_size = 352;
  c.num_experts = 8;
  ExpertMlps mlps("moe", "block", "block", c);
  const std::vector<Param*> params = mlps.params();
  StoreSettings settings;
  settings.device = at::Device(at::kCUDA, 0);
  settings.dtype = at::kBFloat16;
  settings.gradients = true;
  std::vector<ParamPolicy> policies(params.size());
  for (ParamPolicy& policy : policies) policy.train = true;
  ParamStore store(params, policies, settings);
  for (size_t i = 0; i < params.size(); ++i) {
    store.assign(params[i]->spec.name, redrawn(params[i]->spec, i + 1));
  }
  at::manual_seed(81);
  const at::Tensor data = at::randn({777, 128}).cuda().to(at::kBFloat16);
  const at::Tensor d_y = at::randn({777, 128}).cuda().to(at::kBFloat16);
  std::map<ExpertPath, std::vector<at::Tensor>> results;
  for (const ExpertPath path : {ExpertPath::kLoop, ExpertPath::kGrouped}) {
    store.begin_step();
    store.groups().front().grad.zero_();
    const at::Tensor x = data.detach().clone().requires_grad_();
    const ExpertMlps::Routed r = mlps.route(x);
    ASSERT_EQ(mlps.path(r.rows_RH, 0, 8), ExpertPath::kGrouped);
    const at::Tensor y =
        mlps.combine(mlps.compute(r.rows_RH, {}, 0, r.visits_E, path), r.back_R, r.weight_Tk);
    y.backward(d_y);
    results[path] = {y.detach(), x.grad()};
    for (const Param* param : params) {
      results[path].push_back(store.owned_grad(param->spec.name).clone());
    }
  }
  const auto &loop = results[ExpertPath::kLoop], &grouped = results[ExpertPath::kGrouped];
  for (size_t i = 0; i < loop.size(); ++i) {
    EXPECT_TRUE(near_l2(grouped[i], loop[i], 6e-3))
        << (i < 2 ? (i == 0 ? "y" : "x") : params[i - 2]->spec.name);
  }
}

}  // namespace
}  // namespace mgm
