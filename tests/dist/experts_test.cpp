// Experts that are dealt to the ranks of expert groups: losses, gradients and weights equal those
// of one rank that has them all, in every mode and for every kind of batch.
#include "train/expert_exchange.h"

#include <set>

#include "dist/frozen_hash.h"
#include "dist/rank_groups.h"
#include "engine_run.h"

namespace mgm {
namespace {

void mixtral(RunConfig& c) {
  c.model.llm.arch = LlmArch::kMixtral;
  c.model.llm.num_experts = 4;
  c.model.llm.experts_per_token = 2;
  c.model.llm.router_aux_loss = 0.05;
}

std::vector<Scenario> scenarios() {
  std::vector<Scenario> out;
  const auto add = [&](const char* name, const std::function<void(RunConfig&)>& change) {
    Scenario s{name};
    s.change = [change](RunConfig& c) {
      mixtral(c);
      change(c);
    };
    out.push_back(s);
    return &out.back();
  };
  add("everything_trains", [](RunConfig&) {});
  add("stage1", [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); });
  add("stage2_recomputed", [](RunConfig& c) {
    c.train.rules = preset(RulePreset::kStage2);
    c.train.recompute = {{"model.layers.*", RecomputePolicy::kFull}};
  });
  add("accumulation", [](RunConfig& c) { c.train.micro_batch = 1; });
  // Ranks whose text alone has no gradient below the experts, beside ranks with pictures.
  Scenario* some = add("stage1_text_only_on_some_ranks",
                       [](RunConfig& c) { c.train.rules = preset(RulePreset::kStage1); });
  some->text_on_some = true;
  some->pictures = pictures_of_some;
  add("stage1_text_only_on_all_ranks", [](RunConfig& c) {
    c.train.rules = preset(RulePreset::kStage1);
    TrainRule head;
    head.match = "lm_head.*";
    c.train.rules.push_back(head);
  })->pictures = [](int64_t) { return 0; };
  // Ranks without anything to learn, in some micro-batches and in all.
  add("holes", [](RunConfig&) {})->hole = [](int64_t i) { return i < 9 || i > 20; };
  add("one_sample", [](RunConfig& c) { c.train.micro_batch = 1; })->hole = [](int64_t i) {
    return i != 7;
  };
  // All rows go to the first two experts, so to one rank: the others get none.
  add("empty_experts", [](RunConfig&) {})->zero_router = true;
  add("one_expert_has_all", [](RunConfig& c) { c.model.llm.experts_per_token = 1; })->zero_router =
      true;
  add("more_experts_than_rows", [](RunConfig& c) {
    c.model.llm.num_experts = 32;
    c.train.micro_batch = 1;
  })->pictures = [](int64_t) { return 0; };
  // Experts frozen beside a trained block, and the other way round.
  add("frozen_experts", [](RunConfig& c) {
    TrainRule all, experts;
    all.match = "*";
    experts.match = "*.experts.*";
    experts.train = false;
    c.train.rules = {all, experts};
  });
  add("only_experts", [](RunConfig& c) {
    TrainRule experts;
    experts.match = "*.experts.*";
    c.train.rules = {experts};
  });
  add("adapters", [](RunConfig& c) {
    c.model.adapter.kind = AdapterKind::kLora;
    c.model.adapter.rank = 3;
    c.model.adapter.alpha = 1;
    c.model.adapter.dropout = 0.2;
    c.train.rules = preset(RulePreset::kStage1);
    c.train.rules.push_back(preset(RulePreset::kAdapter)[0]);
    c.train.recompute = {{"model.layers.1*", RecomputePolicy::kFull}};
  });
  return out;
}

struct Case {
  DistMode mode;
  int world;
  int64_t experts, shard_size = 0;
};

// Every way of sharing, or (where time is short) those that differ most.
std::vector<Case> cases() {
  std::vector<Case> out = {
      {DistMode::kZero2, 4, 2}, {DistMode::kZero3, 4, 4}, {DistMode::kHybrid, 4, 2, 2}};
  if (!full_matrix()) return out;
  for (const DistMode mode :
       {DistMode::kReplicate, DistMode::kZero1, DistMode::kZero2, DistMode::kZero3}) {
    for (const auto& [world, experts] : {std::pair{2, 2}, {4, 2}, {4, 4}, {8, 2}, {8, 4}}) {
      out.push_back({mode, world, experts});
    }
  }
  out.push_back({DistMode::kHybrid, 8, 2, 4});
  out.push_back({DistMode::kHybrid, 8, 4, 4});
  return out;
}

RunConfig with(RunConfig config, const Case& c) {
  config.dist.mode = c.mode;
  config.dist.shard_size = c.shard_size;
  config.dist.expert_parallel = c.experts;
  return config;
}

std::string text_of(const Case& c) {
  return cat(name_of(c.mode), " on ", c.world, ", experts on ", c.experts);
}

class DealtExperts : public testing::TestWithParam<size_t> {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};
INSTANTIATE_TEST_SUITE_P(Scenarios, DealtExperts, testing::Range<size_t>(0, scenarios().size()),
                         [](const testing::TestParamInfo<size_t>& test) {
                           return scenarios()[test.param].name;
                         });

TEST_P(DealtExperts, GradientsAreThoseOfOneRank) {
  const Scenario scenario = scenarios()[GetParam()];
  const RunConfig config = config_of(scenario);
  const Outcome one64 = train(scenario, config, 1, at::kDouble, 0);
  const Outcome one32 = train(scenario, config, 1, at::kFloat, 0);
  for (const Case& c : cases()) {
    const RunConfig run = with(config, c);
    expect_equal_gradients(train(scenario, run, c.world, at::kDouble, 0), one64, 1e-11,
                           text_of(c) + " fp64");
    expect_equal_gradients(train(scenario, run, c.world, at::kFloat, 0), one32, 1e-5,
                           text_of(c) + " fp32");
  }
}

TEST_P(DealtExperts, LossesAndNormsOfStepsAreThoseOfOneRank) {
  if (!full_matrix() && GetParam() % 6 != 0) GTEST_SKIP() << "every sixth without MGM_TEST_FULL=1";
  const Scenario scenario = scenarios()[GetParam()];
  const RunConfig config = config_of(scenario);
  const Outcome one = train(scenario, config, 1, at::kFloat, 10);
  for (const Case& c : cases()) {
    const Outcome many = train(scenario, with(config, c), c.world, at::kFloat, 10);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      const std::string what = cat(text_of(c), ", step ", i + 1);
      EXPECT_NEAR(many.losses[i], one.losses[i], 1e-6 * one.losses[i]) << what;
      EXPECT_NEAR(many.norms[i], one.norms[i], 2e-5 * one.norms[i]) << what;
    }
  }
}

TEST_P(DealtExperts, StrictGivesTheSameBits) {
  if (!full_matrix() && GetParam() % 4 != 2) GTEST_SKIP() << "every fourth without MGM_TEST_FULL=1";
  const Scenario scenario = scenarios()[GetParam()];
  RunConfig config = config_of(scenario);
  config.dist.reduction = Reduction::kStrict;
  config.dist.virtual_shards = 24;
  config.train.micro_batch = 1;
  const Outcome one = train(scenario, config, 1, at::kFloat, 3);
  for (const Case& c : cases()) {
    const Outcome many = train(scenario, with(config, c), c.world, at::kFloat, 3);
    EXPECT_EQ(many.losses, one.losses) << text_of(c);
    EXPECT_EQ(many.norms, one.norms) << text_of(c);
    for (const auto& [name, weight] : one.weights) {
      EXPECT_TRUE(at::equal(many.weights.at(name), weight)) << text_of(c) << ": " << name;
    }
  }
}

// A world that is not a power of two: six experts dealt to three ranks.
TEST(DealtExpertsThree, GradientsAreThoseOfOneRank) {
  install_recompute_engine();
  const Scenario scenario = scenarios()[0];
  RunConfig config = config_of(scenario);
  config.model.llm.num_experts = 6;
  config.train.micro_batch = 2;  // the auxiliary loss is that of a micro-batch
  const Outcome one = train(scenario, config, 1, at::kDouble, 0);
  for (const DistMode mode : {DistMode::kReplicate, DistMode::kZero2, DistMode::kZero3}) {
    const Case c{mode, 3, 3};
    expect_equal_gradients(train(scenario, with(config, c), 3, at::kDouble, 0), one, 1e-11,
                           text_of(c));
  }
}

// The modes that the cases above leave out where time is short.
TEST(DealtExpertsModes, GradientsAreThoseOfOneRank) {
  install_recompute_engine();
  const Scenario scenario = scenarios()[0];
  const RunConfig config = config_of(scenario);
  const Outcome one = train(scenario, config, 1, at::kDouble, 0);
  for (const Case& c : {Case{DistMode::kReplicate, 4, 2}, Case{DistMode::kZero1, 4, 4},
                        Case{DistMode::kZero1, 4, 2}, Case{DistMode::kZero3, 4, 2},
                        Case{DistMode::kReplicate, 2, 2}, Case{DistMode::kZero2, 4, 4}}) {
    const Outcome many = train(scenario, with(config, c), c.world, at::kDouble, 0);
    expect_equal_gradients(many, one, 1e-11, text_of(c));
  }
}

TEST(DealtExpertsStore, ARankHoldsItsShareAndRulesMustMatchAllExperts) {
  RunConfig config = tiny_config();
  mixtral(config);
  config.dist.expert_parallel = 2;
  for (int rank = 0; rank < 4; ++rank) {
    const TinyModel tiny(config, at::kFloat, at::kCPU, make_topology(config.dist, rank, 4, 4));
    for (const Param* param : tiny.params) {
      const int64_t e = param->spec.expert;
      EXPECT_EQ(tiny.store->contains(param->spec.name), e < 0 || e / 2 == rank % 2)
          << param->spec.name << " on rank " << rank;
    }
  }
  TrainRule first;
  first.match = "*.experts.0.*";
  config.train.rules = {first};
  EXPECT_THROW(TinyModel(config, at::kFloat, at::kCPU, make_topology(config.dist, 0, 4, 4)),
               ConfigError);
}

// What a checkpoint keeps of frozen weights does not know who holds them.
TEST(DealtExpertsStore, FrozenHashesAreThoseOfOneRank) {
  RunConfig config = tiny_config();
  mixtral(config);
  config.train.rules = preset(RulePreset::kStage1);
  std::map<std::string, std::string> one;
  run_ranks(1, config.dist,
            [&](Ranks& ranks) { one = frozen_hashes(*TinyModel(config).store, ranks); });
  EXPECT_TRUE(one.count("model.layers.0"));
  config.dist.expert_parallel = 2;
  for (const DistMode mode : {DistMode::kReplicate, DistMode::kZero3}) {
    config.dist.mode = mode;
    run_ranks(4, config.dist, [&](Ranks& ranks) {
      const TinyModel tiny(config, at::kFloat, at::kCPU, ranks.topology);
      EXPECT_EQ(frozen_hashes(*tiny.store, ranks), one);
    });
  }
}

TEST(DealtExpertsTopology, OfExpertsIsTheWorldOfThoseWithTheSameOnes) {
  DistConfig dist;
  dist.expert_parallel = 2;
  dist.mode = DistMode::kHybrid;
  dist.shard_size = 4;
  const Topology t = make_topology(dist, 6, 8, 8), e = t.of_experts();
  EXPECT_EQ(t.expert_rank(), 0);
  EXPECT_EQ(t.expert_group(), 3);
  EXPECT_EQ(e.world, 4);
  EXPECT_EQ(e.rank, 3);
  EXPECT_EQ(e.shard_size, 2);
  EXPECT_EQ(e.replicas, 2);
  EXPECT_EQ(e.shard_rank(), 1);
  EXPECT_EQ(e.replica_rank(), 1);
  EXPECT_EQ(e.mode, DistMode::kHybrid);
  // Nothing is left to cut where a shard group is one expert group.
  dist.expert_parallel = 4;
  EXPECT_EQ(make_topology(dist, 0, 8, 8).of_experts().mode, DistMode::kReplicate);
  const auto refused = [&](int64_t experts, int world, const std::string& want) {
    dist.expert_parallel = experts;
    try {
      make_topology(dist, 0, world, world);
      ADD_FAILURE() << experts << " of " << world << " is taken";
    } catch (const ConfigError& error) {
      EXPECT_EQ(std::string(error.what()), want);
    }
  };
  refused(8, 8,
          "dist.expert_parallel: 8 ranks do not divide a shard group of 4 ranks; these do: "
          "1, 2, 4");
  dist.mode = DistMode::kZero2;
  refused(3, 8,
          "dist.expert_parallel: 3 ranks do not divide the world of 8 ranks; these do: "
          "1, 2, 4, 8");
}

// Who says that a group is his is one of its members, and each member says so, of the same place.
TEST(RankGroups, MembersAgreeOnTheirGroups) {
  for (const Case& c : {Case{DistMode::kHybrid, 8, 2, 4}, Case{DistMode::kHybrid, 8, 4, 4},
                        Case{DistMode::kZero3, 6, 2}, Case{DistMode::kReplicate, 8, 4},
                        Case{DistMode::kZero2, 4, 1}, Case{DistMode::kHybrid, 6, 1, 3}}) {
    DistConfig dist;
    dist.mode = c.mode;
    dist.shard_size = c.shard_size;
    dist.expert_parallel = c.experts;
    std::map<std::string, std::set<int>> members, sayers;
    for (int rank = 0; rank < c.world; ++rank) {
      const RankGroups groups(make_topology(dist, rank, c.world, c.world));
      std::set<std::string> names;
      for (const GroupPlace* g : groups.connected()) {
        EXPECT_EQ(g->first + g->rank * g->stride, rank) << text_of(c) << ", " << g->name;
        EXPECT_TRUE(names.insert(g->name).second) << text_of(c) << ": twice " << g->name;
        std::set<int> ranks;
        for (int i = 0; i < g->size; ++i) ranks.insert(g->first + i * g->stride);
        EXPECT_EQ(members.emplace(g->name, ranks).first->second, ranks) << text_of(c);
        sayers[g->name].insert(rank);
      }
      EXPECT_EQ(names.count("world"), 1u);
      EXPECT_EQ(groups.exchange.size, c.experts);
    }
    EXPECT_EQ(sayers, members) << text_of(c);
  }
}

TEST(RankGroups, OneRankAloneHasEveryGroup) {
  const Ranks ranks = local_ranks({});
  for (const auto& group :
       {ranks.control, ranks.world, ranks.gather, ranks.reduce, ranks.replica, ranks.expert_world,
        ranks.expert_gather, ranks.expert_reduce, ranks.expert_replica, ranks.exchange}) {
    ASSERT_TRUE(group);
    EXPECT_EQ(group->size(), 1);
  }
}

}  // namespace
}  // namespace mgm
