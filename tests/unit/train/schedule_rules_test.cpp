// The learning rate over time and what trains.
#include <gtest/gtest.h>

#include <cmath>

#include "optim/lr_schedule.h"
#include "tiny_model.h"

namespace mgm {
namespace {

// transformers.get_cosine_schedule_with_warmup as a formula: step t of the run uses lambda(t - 1).
TEST(LrSchedule, CosineIsThatOfTransformers) {
  ScheduleConfig config;
  config.warmup_ratio = 0.03;
  const LrSchedule schedule(config, 2e-5, 5197);
  EXPECT_EQ(schedule.warmup_steps(), 156);  // ceil(0.03 * 5197)
  EXPECT_EQ(schedule.at(1), 0);
  for (const int64_t step : {2, 3, 156, 157, 158, 1000, 5196, 5197}) {
    const double t = double(step - 1);
    const double lambda =
        t < 156 ? t / 156 : std::max(0.0, 0.5 * (1 + std::cos(M_PI * (t - 156) / (5197 - 156))));
    EXPECT_NEAR(schedule.at(step), 2e-5 * lambda, 1e-18) << step;
  }
}

TEST(LrSchedule, LinearConstantAndMinimum) {
  ScheduleConfig config;
  config.warmup_steps = 2;
  config.kind = ScheduleKind::kLinear;
  config.min_ratio = 0.1;
  const LrSchedule linear(config, 1, 12);
  EXPECT_EQ(linear.at(2), 0.5);
  EXPECT_EQ(linear.at(3), 1);
  EXPECT_NEAR(linear.at(8), 0.1 + 0.9 * 0.5, 1e-15);
  EXPECT_NEAR(linear.at(13), 0.1, 1e-15);
  config.kind = ScheduleKind::kConstant;
  EXPECT_EQ(LrSchedule(config, 3, 12).at(12), 3);
}

std::vector<std::string> trained(const RunConfig& config) {
  const MiniGemini model(config.model, config.image);
  const std::vector<Param*> params = model.params();
  const RuleOutcome rules = resolve_rules(params, config);
  EXPECT_TRUE(rules.problems.empty());
  std::vector<std::string> names;
  for (size_t i = 0; i < params.size(); ++i) {
    if (rules.policies[i].train) names.push_back(params[i]->spec.name);
  }
  return names;
}

TrainRule preset(RulePreset which) {
  TrainRule rule;
  rule.preset = which;
  return rule;
}

TEST(ParamRules, StagePresets) {
  RunConfig config = tiny_config();
  config.train.rules = {preset(RulePreset::kStage1)};
  const std::vector<std::string> stage1 = trained(config);
  EXPECT_EQ(stage1.size(), 4u + 12u);  // two linear layers; three heads of norm and linear
  for (const std::string& name : stage1) {
    EXPECT_TRUE(name.find("mm_projector") != name.npos || name.find("vlm_uni") != name.npos)
        << name;
  }
  config.train.rules = {preset(RulePreset::kStage2)};
  for (const std::string& name : trained(config)) {
    EXPECT_EQ(name.find("vision_tower"), name.npos) << name;
  }
  config.train.rules.push_back(preset(RulePreset::kOptimizeVisionTowerAux));
  int64_t tower = 0;
  for (const std::string& name : trained(config)) {
    if (name.find("vision_tower_aux") == name.npos) continue;
    ++tower;
    EXPECT_EQ(name.find("stem"), name.npos) << name;
    EXPECT_EQ(name.find("downsample"), name.npos) << name;
    EXPECT_EQ(name.find("vision_stages.2.blocks.0"), name.npos) << name;  // not the last block
  }
  EXPECT_EQ(tower, 4 * 9);
}

TEST(ParamRules, LastMatchWinsAndDecaySparesBiasesAndNorms) {
  RunConfig config = tiny_config();
  config.optimizer.weight_decay = 0.1;
  TrainRule all, slow, frozen;
  all.match = "*";
  slow.match = "lm_head.*";
  slow.lr_scale = 0.5;
  slow.weight_decay = 0.01;
  frozen.match = "model.embed_tokens.*";
  frozen.train = false;
  config.train.rules = {all, slow, frozen};
  const MiniGemini model(config.model, config.image);
  const std::vector<Param*> params = model.params();
  const RuleOutcome rules = resolve_rules(params, config);
  for (size_t i = 0; i < params.size(); ++i) {
    const std::string& name = params[i]->spec.name;
    const ParamPolicy& policy = rules.policies[i];
    if (name == "lm_head.weight") {
      EXPECT_EQ(policy.lr_scale, 0.5);
      EXPECT_EQ(policy.weight_decay, 0.01);
    } else if (name == "model.embed_tokens.weight") {
      EXPECT_FALSE(policy.train);
    } else if (name == "model.norm.weight" || name == "model.mm_projector.0.bias") {
      EXPECT_EQ(policy.weight_decay, 0) << name;
    } else if (name == "model.mm_projector.0.weight") {
      EXPECT_EQ(policy.weight_decay, 0.1);
    }
  }
}

TEST(ParamRules, APatternWithoutAMatchIsAProblem) {
  RunConfig config = tiny_config();
  TrainRule typo;
  typo.match = "model.mm_projektor.*";
  config.train.rules = {preset(RulePreset::kStage2), typo};
  const MiniGemini model(config.model, config.image);
  const RuleOutcome rules = resolve_rules(model.params(), config);
  ASSERT_EQ(rules.problems.size(), 1u);
  EXPECT_EQ(rules.problems[0].key, "train.rules[1].match");
  EXPECT_NE(rules.problems[0].message.find("model.mm_projector"), std::string::npos)
      << rules.problems[0].message;
}

}  // namespace
}  // namespace mgm
