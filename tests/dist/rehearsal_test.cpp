// The rehearsal of collectives: it lists what the engine issues, and every rank the same.
#include "train/rehearsal.h"

#include <gtest/gtest.h>

#include "rank_threads.h"
#include "tiny_model.h"
#include "train/recompute.h"
#include "train/rehearsal_run.h"

namespace mgm {
namespace {

constexpr DistMode kModes[] = {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2,
                               DistMode::kZero3, DistMode::kHybrid};

RunConfig config_of(RulePreset rules, DistMode mode, int64_t shard_size) {
  RunConfig config = tiny_config();
  TrainRule rule;
  rule.preset = rules;
  config.train.rules = {rule};
  config.train.micro_batch = 2;
  config.dist.mode = mode;
  config.dist.shard_size = mode == DistMode::kHybrid ? shard_size : 0;
  return config;
}

RehearsalRun run_of(const RunConfig& config, int world, int local_world) {
  const int64_t dealt = config.dist.expert_parallel;
  const MiniGemini model(config.model, config.image, dealt > 1);
  RehearsalRun run;
  run.dist = config.dist;
  run.world = world;
  run.local_world = local_world;
  run.leaf = leaf_micro_batches(config);
  run.compute_dtype = "Float";
  run.reduce_dtype = config.dist.reduce_dtype == DtypeKind::kBfloat16 ? "BFloat16" : "Float";
  run.sizes = group_sizes(model.params(), resolve_rules(model.params(), config).policies,
                          static_cast<int>(dealt));
  run.order = model.group_uses();
  run.experts = config.model.llm.num_experts;
  run.row_draws =
      config.model.adapter.kind != AdapterKind::kNone && config.model.adapter.dropout > 0;
  return run;
}

// ---- against the engine -------------------------------------------------------------------------

// Pictures of a rank's micro-batches in a step; -1: no samples at all.
using Pattern = std::vector<std::vector<int>>;  // [rank % size][micro-batch]

void expect_engine_does_it(const RunConfig& config, int world, const std::vector<Pattern>& steps) {
  const RehearsalRun run = run_of(config, world, world);
  run_ranks(world, config.dist, [&](Ranks& ranks) {
    TinyModel tiny(config, at::kFloat, at::kCPU, ranks.topology);
    TrainModule module(tiny.config, tiny.model, *tiny.store,
                       make_recompute_runner(config.train.recompute), ranks);
    for (size_t s = 0; s < steps.size(); ++s) {
      RehearsedStep step;
      std::vector<Batch> mine;
      for (int rank = 0; rank < world; ++rank) {
        const std::vector<int>& counts = steps[s][static_cast<size_t>(rank) % steps[s].size()];
        std::vector<RankBatch>& rehearsed = step.ranks.emplace_back();
        for (const int pictures : counts) {
          rehearsed.push_back({pictures >= 0, pictures > 0});
          if (rank != ranks.rank()) continue;
          std::vector<Sample> samples;
          if (pictures >= 0) samples.push_back(tiny_sample(tiny.model, 3, pictures, 7));
          if (pictures >= 0) samples.push_back(tiny_sample(tiny.model, 4, 0, 9));
          mine.push_back(pack(samples, 2 - static_cast<int64_t>(samples.size()), 0));
        }
      }
      const size_t before = ranks.log->records().size();
      module.step(mine, agree(ranks, config, mine), static_cast<int64_t>(s) + 1, 1e-3);
      std::vector<CollectiveRecord> logged = ranks.log->records();
      logged.erase(logged.begin(), logged.begin() + static_cast<std::ptrdiff_t>(before));
      for (CollectiveRecord& record : logged) {  // how many rows go to experts is not rehearsed
        if (record.group.starts_with("exchange") && record.operation == "all_to_all" &&
            !record.label.ends_with(" visits")) {
          record.numel = 0;
        }
      }
      const std::vector<CollectiveRecord> rehearsed = rehearse_rank(run, step, ranks.rank());
      const std::string what =
          cat(name_of(config.dist.mode), " rank ", ranks.rank(), " of ", world, ", step ", s + 1);
      EXPECT_EQ(first_difference(rehearsed, 0, logged, 1), "") << what;
      EXPECT_GT(logged.size(), 3u) << what;
      for (size_t i = 0; i < std::min(rehearsed.size(), logged.size()); ++i) {
        EXPECT_EQ(rehearsed[i].group, logged[i].group) << what << ", collective " << i;
      }
    }
  });
}

// Everywhere, on one rank, nowhere; nothing to learn on one rank, on all in the last micro-batch.
std::vector<Pattern> patterns() {
  return {{{1, 2}}, {{0, 0}, {0, 1}}, {{0, 0}}, {{-1, 1}, {0, 0}}, {{1, -1}}};
}

class RehearsalTest : public testing::TestWithParam<RulePreset> {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};
INSTANTIATE_TEST_SUITE_P(Stages, RehearsalTest,
                         testing::Values(RulePreset::kStage1, RulePreset::kStage2),
                         [](const auto& test) {
                           return test.param == RulePreset::kStage1 ? "stage1" : "stage2";
                         });

TEST_P(RehearsalTest, IsTheLogOfTheEngine) {
  for (const DistMode mode : kModes) {
    for (const int world : {2, 3}) {
      if (mode == DistMode::kHybrid) continue;
      expect_engine_does_it(config_of(GetParam(), mode, 0), world, patterns());
    }
  }
  expect_engine_does_it(config_of(GetParam(), DistMode::kHybrid, 2), 4, patterns());
}

TEST_P(RehearsalTest, IsTheLogOfTheEngineInStrictModeAndWithRecomputation) {
  for (const DistMode mode : {DistMode::kReplicate, DistMode::kZero3}) {
    RunConfig config = config_of(GetParam(), mode, 0);
    config.dist.reduction = Reduction::kStrict;
    config.dist.virtual_shards = 4;
    config.train.global_batch = 8;  // four leaves of one micro-batch, two of them on each rank
    config.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
    expect_engine_does_it(config, 2, patterns());
  }
}

TEST_P(RehearsalTest, IsTheLogOfTheEngineWithATiedHeadAndBf16Sums) {
  RunConfig config = config_of(GetParam(), DistMode::kZero3, 0);
  config.model.llm.tie_embeddings = true;
  config.dist.reduce_dtype = DtypeKind::kBfloat16;
  expect_engine_does_it(config, 2, patterns());
}

RunConfig with_experts(RunConfig config, int64_t ranks) {
  config.model.llm.arch = LlmArch::kMixtral;
  config.model.llm.num_experts = 4;
  config.model.llm.router_aux_loss = 0.01;
  config.dist.expert_parallel = ranks;
  return config;
}

TEST_P(RehearsalTest, IsTheLogOfTheEngineWithDealtExperts) {
  for (const DistMode mode : kModes) {
    for (const auto& [world, ranks] : {std::pair{2, 2}, {4, 2}, {4, 4}}) {
      const int64_t shard = world == 4 && ranks == 2 ? 2 : 4;
      if (mode == DistMode::kHybrid && (world == 2 || ranks == 4)) continue;
      RunConfig config = with_experts(config_of(GetParam(), mode, shard), ranks);
      expect_engine_does_it(config, world, patterns());
      if (mode != DistMode::kZero2) continue;
      config.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
      expect_engine_does_it(config, world, patterns());
      config.dist.reduction = Reduction::kStrict;
      config.dist.virtual_shards = 8;
      config.train.global_batch = 16;
      expect_engine_does_it(config, world, patterns());
    }
  }
}

// ---- many ranks ---------------------------------------------------------------------------------

TEST_P(RehearsalTest, AllRanksAgreeOnAnyNumberOfThem) {
  for (const DistMode mode : kModes) {
    for (const int world : {1, 2, 3, 8, 64, 512}) {
      if (mode == DistMode::kHybrid && world < 8) continue;
      RunConfig config = config_of(GetParam(), mode, 4);
      if (world % 8 == 0) config = with_experts(config, world == 64 ? 4 : 2);
      const RehearsalRun run = run_of(config, world, std::min(world, 8));
      const std::vector<RehearsedStep> steps = drawn_steps(world, 2, 11);
      const Rehearsal rehearsal = rehearse(run, steps);
      const std::string what = cat(name_of(mode), " on ", world);
      EXPECT_EQ(join(rehearsal.differences, "\n"), "") << what;
      ASSERT_EQ(rehearsal.per_step.size(), steps.size());
      for (const int64_t collectives : rehearsal.per_step) {
        EXPECT_EQ(collectives == 0, world == 1) << what;
      }
    }
  }
}

TEST(Rehearsal, DrawnStepsHoldEveryKindOfRank) {
  bool images_on_all = false, on_one = false, on_none = false, some_empty = false;
  bool all_empty = false;
  for (const RehearsedStep& step : drawn_steps(64, 2, 3)) {
    for (size_t i = 0; i < 2; ++i) {
      int images = 0, targets = 0;
      for (const auto& batches : step.ranks) {
        images += batches[i].images ? 1 : 0;
        targets += batches[i].targets ? 1 : 0;
      }
      images_on_all = images_on_all || images == 64;
      on_one = on_one || images == 1;
      on_none = on_none || (images == 0 && targets == 64);
      some_empty = some_empty || (targets > 0 && targets < 64);
      all_empty = all_empty || targets == 0;
    }
  }
  EXPECT_TRUE(images_on_all && on_one && on_none && some_empty && all_empty);
}

TEST(Rehearsal, ADifferenceIsNamed) {
  const RehearsalRun run = run_of(config_of(RulePreset::kStage2, DistMode::kZero3, 0), 2, 2);
  RehearsedStep step = drawn_steps(2, 1, 1).front();
  const std::vector<CollectiveRecord> one = rehearse_rank(run, step, 0);
  std::vector<CollectiveRecord> other = rehearse_rank(run, step, 1);
  EXPECT_EQ(first_difference(other, 1, one, 0), "");
  other[5].numel += 256;
  EXPECT_EQ(first_difference(other, 1, one, 0),
            cat("collective 5: rank 1 has ", "gather all_gather '", one[5].label, "' of ",
                with_commas(one[5].numel + 256), " Float, rank 0 gather all_gather '", one[5].label,
                "' of ", with_commas(one[5].numel), " Float"));
  other = rehearse_rank(run, step, 1);
  other.pop_back();
  EXPECT_NE(first_difference(other, 1, one, 0).find("rank 1 has nothing more, rank 0 "),
            std::string::npos);
  // Ranks that run another program.
  RehearsalRun frozen = run;
  frozen.sizes[0].frozen += frozen.sizes[0].trained;
  frozen.sizes[0].trained = 0;
  EXPECT_NE(first_difference(rehearse_rank(frozen, step, 1), 1, one, 0), "");
}

}  // namespace
}  // namespace mgm
