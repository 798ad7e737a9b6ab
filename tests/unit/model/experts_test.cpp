// Both ways in which experts are computed: expert by expert, and as one product.
#include <ATen/ATen.h>

#include "dist/param_store.h"
#include "grad_check.h"
#include "model/feed_forward.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {
namespace {

LlmConfig experts_config() {
  LlmConfig c = tiny_config().model.llm;
  c.arch = LlmArch::kMixtral;
  c.num_experts = 5;
  c.experts_per_token = 2;
  return c;
}

struct Experts {
  Experts() : mlps("moe", "block", "block", experts_config()), params(mlps.params()) {
    StoreSettings settings;
    settings.gradients = true;
    settings.dtype = at::kDouble;
    std::vector<ParamPolicy> policies(params.size());
    for (ParamPolicy& policy : policies) policy.train = true;
    store = std::make_unique<ParamStore>(params, policies, settings);
    for (size_t i = 0; i < params.size(); ++i) {
      store->assign(params[i]->spec.name, redrawn(params[i]->spec, i + 1));
    }
  }
  ExpertMlps mlps;
  std::vector<Param*> params;
  std::unique_ptr<ParamStore> store;
};

struct Outcome {
  at::Tensor y, d_x;
  std::map<std::string, at::Tensor> grads;
};

// The way ExpertMlps goes, grouped or not as the test chooses.
Outcome run(bool grouped, const at::Tensor& x_TH, const std::vector<int64_t>& visits) {
  Experts experts;
  const at::Tensor x = x_TH.detach().clone().requires_grad_();
  ExpertMlps::Routed r = experts.mlps.route(x);
  if (!visits.empty()) r.visits_E = at::tensor(visits, at::kLong);
  Outcome out;
  const ExpertMlps::Stacks stacks = grouped ? experts.mlps.stacks(0, 5) : ExpertMlps::Stacks();
  EXPECT_EQ(stacks.size(), grouped ? 3u : 0u);
  out.y = experts.mlps.combine(experts.mlps.compute(r.rows_RH, {}, 0, r.visits_E, stacks), r.back_R,
                               r.weight_Tk);
  at::manual_seed(3);
  out.y.backward(at::randn_like(out.y));
  out.d_x = x.grad();
  for (const Param* param : experts.params) {
    out.grads[param->spec.name] = experts.store->owned_grad(param->spec.name).clone();
  }
  return out;
}

void expect_equal_paths(const at::Tensor& x, const std::vector<int64_t>& visits) {
  const Outcome loop = run(false, x, visits);
  const Outcome grouped = run(true, x, visits);
  EXPECT_TRUE(near_l2(grouped.y, loop.y, 1e-13));
  EXPECT_TRUE(near_l2(grouped.d_x, loop.d_x, 1e-12));
  double largest = 0;
  for (const auto& [name, grad] : loop.grads) {
    EXPECT_TRUE(near_l2(grouped.grads.at(name), grad, 1e-12)) << name;
    largest = std::max(largest, grad.abs().max().item<double>());
  }
  EXPECT_GT(largest, 0);
  for (size_t e = 0; e < visits.size(); ++e) {
    const double norm =
        grouped.grads.at(cat("moe.experts.", e, ".w2.weight")).norm().item<double>();
    EXPECT_EQ(norm == 0, visits[e] == 0) << "expert " << e;
  }
}

TEST(Experts, OneGroupedProductIsTheLoop) {
  at::manual_seed(70);
  expect_equal_paths(at::randn({23, 24}, at::kDouble), {});
  expect_equal_paths(at::randn({1, 24}, at::kDouble), {});
  // Experts without rows, and all rows with one.
  expect_equal_paths(at::randn({9, 24}, at::kDouble), {0, 11, 0, 7, 0});
  expect_equal_paths(at::randn({9, 24}, at::kDouble), {0, 0, 18, 0, 0});
}

// What is kept is made again from the same leaves, and the gradients are the same bits.
TEST(Experts, TheGroupedProductCanBeRecomputed) {
  install_recompute_engine();
  at::manual_seed(72);
  const at::Tensor data = at::randn({9, 24}, at::kDouble), d_y = at::randn({9, 24}, at::kDouble);
  std::vector<std::map<std::string, at::Tensor>> outcomes;
  for (const RecomputePolicy policy : {RecomputePolicy::kNone, RecomputePolicy::kFull}) {
    Experts experts;
    const auto runner = make_recompute_runner({{"block", policy}});
    const at::Tensor x = data.clone().requires_grad_();
    const at::Tensor y = runner->run("block", {x}, [&](const Tensors& in) -> Tensors {
      const ExpertMlps::Routed r = experts.mlps.route(in[0]);
      return {experts.mlps.combine(
          experts.mlps.compute(r.rows_RH, {}, 0, r.visits_E, experts.mlps.stacks(0, 5)), r.back_R,
          r.weight_Tk)};
    })[0];
    y.backward(d_y);
    outcomes.push_back({{"x", x.grad()}, {"y", y.detach()}});
    for (const Param* param : experts.params) {
      const std::string& name = param->spec.name;
      outcomes.back()[name] = experts.store->owned_grad(name).clone();
    }
  }
  for (const auto& [name, want] : outcomes[0]) {
    EXPECT_TRUE(at::equal(outcomes[1].at(name), want)) << name;
    EXPECT_GT(want.abs().max().item<double>(), 0) << name;
  }
}

TEST(Experts, TheCpuTakesTheLoopAndExpertsKnowTheirNumber) {
  Experts experts;
  EXPECT_TRUE(experts.mlps.grouped(at::randn({4, 24}, at::kDouble), 0, 5).empty());
  experts.mlps.number_experts();
  for (const Param* param : experts.params) {
    const std::string& name = param->spec.name;
    const int64_t want = name == "moe.gate.weight" ? -1 : name.at(strlen("moe.experts.")) - '0';
    EXPECT_EQ(param->spec.expert, want) << name;
  }
}

// The router's choice, its weights and the load, against the plain definition.
TEST(Experts, RoutesToTheLikeliest) {
  at::manual_seed(71);
  Experts experts;
  const at::Tensor x = at::randn({13, 24}, at::kDouble);
  const ExpertMlps::Routed r = experts.mlps.route(x);
  const at::Tensor p = at::softmax(at::linear(x, experts.params[0]->value), -1);
  const auto [top, chosen] = p.topk(2, -1);
  EXPECT_TRUE(near_l2(r.weight_Tk, top / top.sum(-1, true), 1e-14));
  EXPECT_TRUE(at::equal(r.visits_E, at::bincount(chosen.flatten(), {}, 5)));
  EXPECT_TRUE(near_l2(r.load_2E[0], p.sum(0), 1e-14));
  EXPECT_TRUE(at::equal(r.load_2E[1], r.visits_E.to(at::kDouble)));
  EXPECT_TRUE(at::equal(r.rows_RH, x.index_select(0, r.visitor_R)));
  // Visit t k + i lies at back[t k + i], among the rows of its expert.
  const at::Tensor ends = r.visits_E.cumsum(0);
  for (int64_t v = 0; v < 26; ++v) {
    const int64_t place = r.back_R[v].item<int64_t>(), e = chosen.flatten()[v].item<int64_t>();
    EXPECT_EQ(r.visitor_R[place].item<int64_t>(), v / 2);
    EXPECT_TRUE(place < ends[e].item<int64_t>() &&
                place >= ends[e].item<int64_t>() - r.visits_E[e].item<int64_t>());
  }
}

}  // namespace
}  // namespace mgm
