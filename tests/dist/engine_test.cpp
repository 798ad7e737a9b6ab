// N ranks equal one rank: gradients, losses and weights, for every mode and every kind of batch.
#include "dist/shard_engine.h"

#include "engine_run.h"

namespace mgm {
namespace {

std::vector<RecomputeRule> recompute_everywhere() {
  return {{"model.layers.*", RecomputePolicy::kFull},
          {"model.vision_tower*", RecomputePolicy::kSelective},
          {"model.mm_projector", RecomputePolicy::kFull},
          {"lm_head", RecomputePolicy::kFull}};
}

TrainRule rule_of(const std::string& match, bool train) {
  TrainRule rule;
  rule.match = match;
  rule.train = train;
  return rule;
}

// Nothing divides by a number of ranks: each size is a prime, but for heads, which pair up.
void prime_widths(RunConfig& c) {
  LlmConfig& llm = c.model.llm;
  llm.vocab_size = 61;
  llm.hidden_size = 23;
  llm.intermediate_size = 37;
  llm.num_heads = 3;
  llm.num_kv_heads = 1;
  llm.head_dim = 10;
  VisionTowerConfig& clip = c.model.vision_tower;
  clip.hidden_size = 19;
  clip.intermediate_size = 29;
  clip.num_heads = 1;
  c.model.convnext.dims = {5, 7, 11, 13};
}

// Scenarios of what trains: sizes, recompute, tied and frozen embeddings.
void add_widths_and_rules(std::vector<Scenario>& out) {
  out.push_back({"stage1_recompute", [](RunConfig& c) {
                   c.train.rules = preset(RulePreset::kStage1);
                   c.train.recompute = recompute_everywhere();
                 }});
  out.push_back({"stage2_recompute", [](RunConfig& c) {
                   c.train.rules = preset(RulePreset::kStage2);
                   c.train.recompute = recompute_everywhere();
                 }});
  out.push_back({"accumulation_recompute", [](RunConfig& c) {
                   c.train.micro_batch = 1;
                   c.train.recompute = recompute_everywhere();
                 }});
  out.push_back({"tied_recompute", [](RunConfig& c) {
                   c.model.llm.tie_embeddings = true;
                   c.train.recompute = recompute_everywhere();
                 }});
  out.push_back({"prime_widths", prime_widths});
  // The pair trains in "tied"; here it is frozen, beside a model that is too or that trains.
  out.push_back({"tied_stage1", [](RunConfig& c) {
                   prime_widths(c);
                   c.model.llm.tie_embeddings = true;
                   c.train.rules = preset(RulePreset::kStage1);
                 }});
  out.push_back({"tied_stage2_frozen_pair", [](RunConfig& c) {
                   prime_widths(c);
                   c.model.llm.tie_embeddings = true;
                   c.train.rules = preset(RulePreset::kStage2);
                   c.train.rules.push_back(rule_of("model.embed_tokens.*", false));
                 }});
  out.push_back({"tied_pair_alone", [](RunConfig& c) {
                   prime_widths(c);
                   c.model.llm.tie_embeddings = true;
                   c.train.rules = {rule_of("model.embed_tokens.*", true)};
                 }});
  out.push_back({"frozen_embeddings_trained_head", [](RunConfig& c) {
                   c.train.rules = preset(RulePreset::kStage2);
                   c.train.rules.push_back(rule_of("model.embed_tokens.*", false));
                 }});
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
  text_on_some.text_on_some = true;
  text_on_some.pictures = pictures_of_some;
  out.push_back(text_on_some);
  Scenario text_on_all{"text_only_on_all_ranks"};
  text_on_all.pictures = [](int64_t) { return 0; };
  out.push_back(text_on_all);
  Scenario text_stage1 = text_on_some;
  text_stage1.name = "stage1_text_only_on_some_ranks";
  text_stage1.change = [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); };
  out.push_back(text_stage1);
  text_on_some.name = "text_only_on_some_ranks_recompute";
  text_on_some.change = [](RunConfig& c) { c.train.recompute = recompute_everywhere(); };
  out.push_back(text_on_some);
  Scenario holes{"holes"};
  holes.hole = [](int64_t i) { return i < 9 || i > 20; };
  out.push_back(holes);
  Scenario no_hr{"no_hr_encoder"};
  no_hr.change = [](RunConfig& c) {
    c.model.hr_encoder = HrEncoder::kNone;
    c.image.hr_size = 24;
  };
  out.push_back(no_hr);
  add_widths_and_rules(out);
  return out;
}

// What one rank computes that keeps everything.
Outcome one_rank(const Scenario& scenario, RunConfig config, at::ScalarType dtype, int64_t steps) {
  config.train.recompute.clear();
  return train(scenario, config, 1, dtype, steps);
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
  out.push_back({DistMode::kHybrid, 8, 4});
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
  const Outcome one64 = one_rank(scenario, config, at::kDouble, 0);
  const Outcome one32 = one_rank(scenario, config, at::kFloat, 0);
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
  const Outcome one = one_rank(scenario, config, at::kFloat, 10);
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
  const Outcome one = one_rank(scenario, config, at::kFloat, 3);
  for (const Case& c : cases()) {
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
