// N ranks equal one rank: gradients, losses and weights, for every mode and every kind of batch.
#include "dist/shard_engine.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "grad_check.h"
#include "rank_threads.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {
namespace {

constexpr int64_t kGlobalBatch = 24;

bool full_matrix() {
  const char* value = std::getenv("MGM_TEST_FULL");
  return value && std::string(value) == "1";
}

struct Scenario {
  std::string name;
  std::function<void(RunConfig&)> change = [](RunConfig&) {};
  // Pictures of sample i; by default a mixture.
  std::function<int64_t(int64_t)> pictures = [](int64_t i) { return i % 5 == 1 ? 0 : i % 3; };
  std::function<bool(int64_t)> hole = [](int64_t) { return false; };
};

std::vector<TrainRule> preset(RulePreset which) {
  TrainRule rule;
  rule.preset = which;
  return {rule};
}

std::vector<Scenario> scenarios() {
  std::vector<Scenario> out;
  out.push_back({"everything_trains"});
  out.push_back({"stage1", [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); }});
  out.push_back({"stage2", [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage2); }});
  out.push_back({"accumulation", [](RunConfig& c) { c.train.micro_batch = 1; }});
  out.push_back({"tied", [](RunConfig& c) { c.model.llm.tie_embeddings = true; }});
  // Frozen and trained parameters in one group.
  out.push_back({"mixed_groups", [](RunConfig& c) {
                   TrainRule some;
                   some.match = "model.layers.*.mlp.*";
                   TrainRule bridge;
                   bridge.match = "*key*proj*";
                   bridge.match = "model.vlm_uni_val_projector.*";
                   TrainRule stem;
                   stem.match = "model.vision_tower_aux.vision_stages.2.blocks.1.*";
                   c.train.rules = {some, bridge, stem};
                 }});
  out.push_back({"recompute", [](RunConfig& c) {
                   c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull},
                                        {"model.vision_tower*", RecomputePolicy::kSelective},
                                        {"lm_head", RecomputePolicy::kFull}};
                 }});
  // Few of a group's parameters train, with dropout, beside the bridge.
  out.push_back({"adapters", [](RunConfig& c) {
                   c.model.adapter.kind = AdapterKind::kLora;
                   c.model.adapter.rank = 3;
                   c.model.adapter.alpha = 1;  // redrawn weights are large: more makes sums steep
                   c.model.adapter.dropout = 0.2;
                   c.train.rules = preset(RulePreset::kStage1);
                   c.train.rules.push_back(preset(RulePreset::kAdapter)[0]);
                   c.train.recompute = {{"model.layers.1", RecomputePolicy::kFull}};
                 }});
  Scenario text_on_some{"text_only_on_some_ranks"};
  text_on_some.pictures = [](int64_t i) { return i % 12 < 8 ? 0 : 1; };
  out.push_back(text_on_some);
  Scenario text_on_all{"text_only_on_all_ranks"};
  text_on_all.pictures = [](int64_t) { return 0; };
  out.push_back(text_on_all);
  Scenario text_stage1 = text_on_some;
  text_stage1.name = "stage1_text_only_on_some_ranks";
  text_stage1.change = [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); };
  out.push_back(text_stage1);
  Scenario holes{"holes"};
  holes.hole = [](int64_t i) { return i < 9 || i > 20; };
  out.push_back(holes);
  Scenario no_hr{"no_hr_encoder"};
  no_hr.change = [](RunConfig& c) {
    c.model.hr_encoder = HrEncoder::kNone;
    c.image.hr_size = 24;
  };
  out.push_back(no_hr);
  return out;
}

RunConfig config_of(const Scenario& scenario) {
  RunConfig config = tiny_config();
  config.train.global_batch = kGlobalBatch;
  config.train.micro_batch = 3;
  config.optimizer.lr = 1e-3;
  config.optimizer.clip_norm = 1.0;
  config.optimizer.weight_decay = 0.01;
  scenario.change(config);
  return config;
}

// This rank's micro-batches of a step, dealt as the loader deals them.
std::vector<Batch> deal(const Scenario& scenario, const MiniGemini& model, const RunConfig& config,
                        const Ranks& ranks, int64_t step) {
  const int64_t leaf = leaf_micro_batches(config), micro = config.train.micro_batch;
  std::vector<Batch> out;
  for (int64_t first = 0; first < kGlobalBatch; first += micro) {
    if (first / micro / leaf % ranks.size() != ranks.rank()) continue;
    std::vector<Sample> samples;
    int64_t holes = 0;
    for (int64_t i = first; i < first + micro; ++i) {
      if (scenario.hole(i)) {
        ++holes;
      } else {
        samples.push_back(tiny_sample(model, 100 * step + i, scenario.pictures(i), 6 + i % 7));
      }
    }
    out.push_back(pack(samples, holes, 0));
  }
  return out;
}

struct Outcome {
  std::map<std::string, at::Tensor> grads, weights;  // whole, of the last step
  std::vector<double> losses, norms;
};

// Trains `steps` steps (0: gradients of one, no optimizer) and puts the parts of all ranks
// together. Replicas must agree to the bit.
Outcome train(const Scenario& scenario, RunConfig config, int world, at::ScalarType dtype,
              int64_t steps) {
  // Every world needs a whole number of micro-batches.
  while (kGlobalBatch % (config.train.micro_batch * world) != 0) --config.train.micro_batch;
  Outcome out;
  std::mutex mutex;
  run_ranks(world, config.dist, [&](Ranks& ranks) {
    TinyModel tiny(config, dtype, at::kCPU, ranks.topology);
    TrainModule module(tiny.config, tiny.model, *tiny.store,
                       make_recompute_runner(config.train.recompute), ranks);
    std::vector<double> losses, norms;
    for (int64_t step = 1; step <= std::max<int64_t>(1, steps); ++step) {
      const std::vector<Batch> batches = deal(scenario, tiny.model, config, ranks, step);
      const StepAgreement agreed = agree(ranks, config, batches);
      const StepResult result = steps == 0
                                    ? module.forward_backward(batches, agreed, step)
                                    : module.step(batches, agreed, step, config.optimizer.lr);
      losses.push_back(result.loss.item<double>());
      if (steps > 0) norms.push_back(result.grad_norm.item<double>());
    }
    const std::lock_guard lock(mutex);
    if (out.losses.empty()) {
      out.losses = losses;
      out.norms = norms;
    }
    EXPECT_EQ(out.losses, losses);
    EXPECT_EQ(out.norms, norms);
    const auto keep = [](std::map<std::string, at::Tensor>& into, const Param& param,
                         const ParamStore::Range& range, const at::Tensor& part) {
      at::Tensor& whole = into[param.spec.name];
      if (!whole.defined()) whole = at::full({param.spec.numel()}, NAN, part.options());
      at::Tensor place = whole.narrow(0, range.first, range.count);
      if (range.count > 0 && !std::isnan(place[0].item<double>())) {
        EXPECT_TRUE(at::equal(place, part)) << param.spec.name << " differs between replicas";
      }
      place.copy_(part);
    };
    for (const ParamGroup& group : tiny.store->groups()) {
      for (const Segment& s : group.trained.segments) {
        const std::string& name = s.param->spec.name;
        const ParamStore::Range range = tiny.store->owned(name);
        keep(out.grads, *s.param, range, tiny.store->owned_grad(name));
        keep(out.weights, *s.param, range, tiny.store->owned_values(name));
      }
    }
  });
  return out;
}

// Mathematically zero: scores do not depend on a bias that all keys share. In one of a group's
// ranks the rounding noise is another.
bool zero_gradient(const std::string& name) {
  return name.find("k_proj.bias") != name.npos ||
         name.find("vlm_uni_aux_projector.0.bias") != name.npos ||
         name.find("vlm_uni_aux_projector.1.bias") != name.npos;
}

void expect_equal_gradients(const Outcome& got, const Outcome& want, double bound,
                            const std::string& what) {
  ASSERT_EQ(got.grads.size(), want.grads.size()) << what;
  double largest = 0;
  for (const auto& [name, grad] : want.grads)
    largest = std::max(largest, grad.norm().item<double>());
  EXPECT_GT(largest, 0) << what;
  for (const auto& [name, grad] : want.grads) {
    const at::Tensor& mine = got.grads.at(name);
    if (zero_gradient(name)) {
      EXPECT_LT(mine.norm().item<double>(), 1e-4 * largest) << what << ": " << name;
    } else if (grad.norm().item<double>() == 0) {
      EXPECT_EQ(mine.norm().item<double>(), 0) << what << ": " << name;
    } else {
      EXPECT_TRUE(near_l2(mine, grad, bound)) << what << ": " << name;
    }
  }
}

constexpr DistMode kModes[] = {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                               DistMode::kZero3, DistMode::kHybrid};

struct Case {
  DistMode mode;
  int world;
  int64_t shard_size;
};

// Every mode on every world, or (where time is short) every mode once.
std::vector<Case> cases() {
  if (!full_matrix()) {
    return {{DistMode::kReplicate, 2, 0},
            {DistMode::kZero1, 2, 0},
            {DistMode::kZero2, 3, 0},
            {DistMode::kZero3, 3, 0},
            {DistMode::kHybrid, 4, 2}};
  }
  std::vector<Case> out;
  for (const int world : {2, 3, 4, 8}) {
    for (const DistMode mode : kModes) {
      if (mode == DistMode::kHybrid && world < 4) continue;
      out.push_back({mode, world, mode == DistMode::kHybrid ? 2 : 0});
    }
  }
  return out;
}

class EngineTest : public testing::TestWithParam<size_t> {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};
std::string scenario_name(const testing::TestParamInfo<size_t>& test) {
  return scenarios()[test.param].name;
}
INSTANTIATE_TEST_SUITE_P(Scenarios, EngineTest, testing::Range<size_t>(0, scenarios().size()),
                         scenario_name);

TEST_P(EngineTest, GradientsEqualOneRank) {
  const Scenario scenario = scenarios()[GetParam()];
  const RunConfig config = config_of(scenario);
  const Outcome one64 = train(scenario, config, 1, at::kDouble, 0);
  const Outcome one32 = train(scenario, config, 1, at::kFloat, 0);
  for (const Case& c : cases()) {
    RunConfig run = config;
    run.dist.mode = c.mode;
    run.dist.shard_size = c.shard_size;
    const std::string what = cat(name_of(c.mode), " on ", c.world);
    expect_equal_gradients(train(scenario, run, c.world, at::kDouble, 0), one64, 1e-11,
                           what + " fp64");
    expect_equal_gradients(train(scenario, run, c.world, at::kFloat, 0), one32, 1e-5,
                           what + " fp32");
  }
}

TEST_P(EngineTest, TenLossesEqualOneRank) {
  if (!full_matrix() && GetParam() % 4 != 1) GTEST_SKIP() << "every fourth without MGM_TEST_FULL=1";
  const Scenario scenario = scenarios()[GetParam()];
  const RunConfig config = config_of(scenario);
  const Outcome one = train(scenario, config, 1, at::kFloat, 10);
  for (const Case& c : cases()) {
    RunConfig run = config;
    run.dist.mode = c.mode;
    run.dist.shard_size = c.shard_size;
    const Outcome many = train(scenario, run, c.world, at::kFloat, 10);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-6 * one.losses[i])
          << name_of(c.mode) << " on " << c.world << ", step " << i + 1;
    }
  }
}

TEST_P(EngineTest, StrictGivesTheSameBitsForEveryWorldAndMode) {
  if (!full_matrix() && GetParam() % 2 != 1) GTEST_SKIP() << "every second without MGM_TEST_FULL=1";
  const Scenario scenario = scenarios()[GetParam()];
  RunConfig config = config_of(scenario);
  config.dist.reduction = Reduction::kStrict;
  config.dist.virtual_shards = 24;
  config.train.micro_batch = 1;
  const Outcome one = train(scenario, config, 1, at::kFloat, 3);
  std::vector<Case> all = cases();
  for (const Case& c : all) {
    RunConfig run = config;
    run.dist.mode = c.mode;
    run.dist.shard_size = c.shard_size;
    const Outcome many = train(scenario, run, c.world, at::kFloat, 3);
    const std::string what = cat(name_of(c.mode), " on ", c.world);
    EXPECT_EQ(many.losses, one.losses) << what;
    EXPECT_EQ(many.norms, one.norms) << what;
    for (const auto& [name, weight] : one.weights) {
      EXPECT_TRUE(at::equal(many.weights.at(name), weight)) << what << ": " << name;
    }
  }
}

// A leaf of several micro-batches, and bf16 on the way between ranks.
TEST(EngineOptions, StrictLeavesOfSeveralMicroBatches) {
  install_recompute_engine();
  const Scenario scenario = scenarios()[0];
  RunConfig config = config_of(scenario);
  config.dist.reduction = Reduction::kStrict;
  config.dist.virtual_shards = 4;
  config.train.micro_batch = 2;
  const Outcome one = train(scenario, config, 1, at::kFloat, 2);
  config.dist.mode = DistMode::kZero3;
  for (const int world : {2, 4}) {
    const Outcome many = train(scenario, config, world, at::kFloat, 2);
    EXPECT_EQ(many.losses, one.losses);
    EXPECT_EQ(many.norms, one.norms);
  }
}

TEST(EngineOptions, Bf16OnTheWayIsWithinBf16) {
  install_recompute_engine();
  const Scenario scenario = scenarios()[0];
  RunConfig config = config_of(scenario);
  const Outcome one = train(scenario, config, 1, at::kFloat, 0);
  config.dist.reduce_dtype = DtypeKind::kBfloat16;
  for (const DistMode mode : kModes) {
    config.dist.mode = mode;
    config.dist.shard_size = 2;
    const Outcome many = train(scenario, config, 4, at::kFloat, 0);
    for (const auto& [name, grad] : one.grads) {
      if (zero_gradient(name)) continue;
      // Four roundings to 8 bits and their sum: 2^-8 each at most, half of it typical.
      EXPECT_TRUE(near_l2(many.grads.at(name), grad, 8e-3)) << name;
      if (grad.norm().item<double>() > 0) {
        EXPECT_FALSE(near_l2(many.grads.at(name), grad, 1e-6)) << name << ": not bf16 at all";
      }
    }
  }
}

}  // namespace
}  // namespace mgm
