// Two ranks over NCCL equal one rank on one GPU, in every mode; strict to the bit, the optimizer's
// state on the host as on the device; and a step makes the host wait nowhere.
#include "dist/engine_run.h"
#include "gpu/gpu.h"
#include "gpu/no_waits.h"
#include "train/metrics_drain.h"

namespace mgm {
namespace {

constexpr DistMode kModes[] = {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                               DistMode::kZero3, DistMode::kHybrid};

std::vector<Scenario> scenarios() {
  std::vector<Scenario> out;
  out.push_back({"everything_trains"});
  out.push_back({"stage1", [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); }});
  out.push_back({"stage2_tied", [](RunConfig& c) {
                   c.train.rules = preset(RulePreset::kStage2);
                   c.model.llm.tie_embeddings = true;
                 }});
  out.push_back({"recompute", [](RunConfig& c) {
                   c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull},
                                        {"model.vision_tower*", RecomputePolicy::kSelective}};
                 }});
  Scenario text{"text_only_on_one_rank"};
  text.pictures = [](int64_t i) { return i / 3 % 2 == 0 ? 0 : 1; };
  out.push_back(text);
  return out;
}

RunConfig in_mode(RunConfig config, DistMode mode) {
  config.dist.mode = mode;
  config.dist.shard_size = mode == DistMode::kHybrid ? 2 : 0;
  return config;
}

class RanksGpu : public GpuTest, public testing::WithParamInterface<size_t> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure() || visible_gpus() >= 2) return;
    if (gpu_required()) FAIL() << "MGM_TEST_REQUIRE=gpu, but this host has one GPU only";
    GTEST_SKIP() << "ONE GPU: this test needs two and has shown nothing";
  }
  static DistMode mode() { return kModes[GetParam()]; }
  // Connecting takes seconds: one of them for each mode, or all with MGM_TEST_FULL=1.
  static std::vector<Scenario> some_scenarios() {
    const std::vector<Scenario> all = scenarios();
    return full_matrix() ? all : std::vector<Scenario>{all[GetParam()]};
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, RanksGpu, testing::Range<size_t>(0, std::size(kModes)),
                         [](const auto& test) { return name_of(kModes[test.param]); });

// After ten steps. AdamW divides by what it has seen: where a gradient is near nothing its rounding
// decides the step, so weights agree less well than the gradients they come from.
void expect_near_weights(const Outcome& got, const Outcome& want, double bound,
                         const std::string& what) {
  ASSERT_EQ(got.weights.size(), want.weights.size());
  for (const auto& [name, weight] : want.weights) {
    if (zero_gradient(name)) continue;
    EXPECT_TRUE(near_l2(got.weights.at(name), weight, bound)) << what << ": " << name;
  }
}

TEST_P(RanksGpu, EqualsOneRank) {
  const Deterministic deterministic;
  for (const Scenario& scenario : some_scenarios()) {
    const RunConfig config = config_of(scenario), run = in_mode(config, mode());
    expect_equal_gradients(train(scenario, run, 2, at::kFloat, 0, true),
                           train(scenario, config, 1, at::kFloat, 0, true), 1e-5, scenario.name);
    const Outcome one = train(scenario, config, 1, at::kFloat, 10, true);
    const Outcome two = train(scenario, run, 2, at::kFloat, 10, true);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      EXPECT_NEAR(two.losses[i], one.losses[i], 1e-6 * one.losses[i])
          << scenario.name << ", step " << i + 1;
    }
    expect_near_weights(two, one, 1e-4, scenario.name);
  }
}

TEST_P(RanksGpu, StrictGivesTheBitsOfOneRank) {
  const Deterministic deterministic;
  for (const Scenario& scenario : some_scenarios()) {
    RunConfig config = config_of(scenario);
    config.dist.reduction = Reduction::kStrict;
    config.dist.virtual_shards = 8;
    config.train.micro_batch = 3;
    const Outcome one = train(scenario, config, 1, at::kFloat, 3, true);
    const Outcome two = train(scenario, in_mode(config, mode()), 2, at::kFloat, 3, true);
    EXPECT_EQ(two.losses, one.losses) << scenario.name;
    EXPECT_EQ(two.norms, one.norms) << scenario.name;
    for (const auto& [name, weight] : one.weights) {
      EXPECT_TRUE(at::equal(two.weights.at(name), weight)) << scenario.name << ": " << name;
    }
  }
}

// The host's AdamW rounds as the device's does but for the order of a product and a sum.
TEST_P(RanksGpu, StateOnTheHostIsThatOnOneDevice) {
  const Deterministic deterministic;
  const Scenario scenario = scenarios()[0];
  RunConfig config = config_of(scenario);
  const Outcome device = train(scenario, config, 1, at::kFloat, 10, true);
  config.dist.offload = Offload::kOptimizer;
  const Outcome host = train(scenario, in_mode(config, mode()), 2, at::kFloat, 10, true);
  for (size_t i = 0; i < host.losses.size(); ++i) {
    EXPECT_NEAR(host.losses[i], device.losses[i], 1e-6 * device.losses[i]) << "step " << i + 1;
    EXPECT_NEAR(host.norms[i], device.norms[i], 1e-5 * device.norms[i]) << "step " << i + 1;
  }
  expect_near_weights(host, device, 1e-4, scenario.name);
}

// What a step's host does from the batch to the report; the number is read when it has arrived.
TEST_P(RanksGpu, AStepWaitsForTheDeviceNowhere) {
  const Scenario scenario = scenarios()[0];
  const RunConfig config = in_mode(config_of(scenario), mode());
  std::optional<NoWaits> no_waits;
  const auto body = [&](Ranks& ranks) {
    const at::Device device = gpu_of(ranks.rank());
    TinyModel tiny(config, at::kBFloat16, device, ranks.topology);
    TrainModule module(tiny.config, tiny.model, *tiny.store, make_recompute_runner({}), ranks);
    MetricsDrain drain({}, OnNonFinite::kSkip, [](int64_t) { return std::vector<std::string>(); });
    const auto step = [&](int64_t number) {
      const std::vector<Batch> batches = deal(scenario, tiny.model, config, ranks, number);
      const StepAgreement agreed = agree(ranks, config, batches);
      const StepResult result = module.step(batches, agreed, number, 1e-3);
      StepReport report;
      report.step = number;
      report.num_targets = agreed.targets;
      drain.push(std::move(report), result);
      drain.drain(4);
    };
    const auto together = [&](auto act) {
      ranks.control->barrier("before");
      if (ranks.is_first()) act();
      ranks.control->barrier("after");
    };
    for (int64_t number = 1; number <= 3; ++number) step(number);
    together([&] { no_waits.emplace(); });
    EXPECT_THROW(at::zeros({1}, device).item<float>(), c10::Error) << "nothing would be seen";
    for (int64_t number = 4; number <= 8; ++number) step(number);
    together([&] { no_waits.reset(); });
    drain.drain(0);
  };
  run_ranks(2, config.dist, body, /*on_gpus=*/true);
}

}  // namespace
}  // namespace mgm
