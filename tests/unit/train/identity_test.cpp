// Hashes of weights, and what else ranks compare before a start.
#include "train/doctor/identity.h"

#include <gtest/gtest.h>

#include "base/fs.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/gguf_builder.h"

namespace mgm {
namespace {

constexpr uint32_t kQ8_0 = 8;
constexpr int64_t kBlocks = 4000, kBlockBytes = 34;

using IdentityTest = FilesTest;

std::string gguf_with(std::string values) {
  GgufBuilder out;
  out.meta("general.architecture", std::string("llama"));
  out.meta("llama.attention.head_count", 2u);
  return out.tensor("output.weight", {32, kBlocks}, kQ8_0, std::move(values)).build();
}

TEST_F(IdentityTest, OfAGgufFileTheBytesInItCount) {
  RunConfig config;
  config.model.init = ModelInit::kPretrained;
  config.model.path = (folder_ / "a.gguf").string();
  const auto hash_of = [&](const std::string& values, WeightContent content) {
    write_file_atomic(config.model.path, gguf_with(values));
    return weights_hash(config, content);
  };
  const std::string zeros(kBlocks * kBlockBytes, '\0');
  std::string last = zeros, between = zeros, unseen = zeros;
  last.back() = 1;
  between[zeros.size() / 2] = 1;  // between the second and the third of four places
  // A number of a block whose scale is 0: unpacked, the tensor is the same.
  unseen[5] = 7;
  for (const auto content : {WeightContent::kSampled, WeightContent::kWhole}) {
    EXPECT_EQ(hash_of(zeros, content), hash_of(zeros, content));
    EXPECT_NE(hash_of(zeros, content), hash_of(last, content));
    EXPECT_NE(hash_of(zeros, content), hash_of(unseen, content));
  }
  EXPECT_EQ(hash_of(zeros, WeightContent::kSampled), hash_of(between, WeightContent::kSampled));
  EXPECT_NE(hash_of(zeros, WeightContent::kWhole), hash_of(between, WeightContent::kWhole));
  EXPECT_EQ(hash_of(zeros, WeightContent::kNone), hash_of(last, WeightContent::kNone));
}

// ---- places -------------------------------------------------------------------------------------

// Four ranks, two on each host; `change` alters what one of them is told by its host and GPU.
Findings compared(const RunConfig& config,
                  const std::function<void(LaunchEnv&, HostFacts&, GpuFacts&)>& change) {
  std::vector<RankFacts> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    LaunchEnv env;
    env.rank = rank;
    env.world = 4;
    env.local_rank = rank % 2;
    env.local_world = 2;
    env.node = rank / 2;
    env.nodes = 2;
    HostFacts host;
    host.name = cat("node", env.node);
    host.gpu_driver = "580.65.06";
    GpuFacts gpu;
    gpu.ordinal = env.local_rank;
    gpu.name = "NVIDIA H100 80GB HBM3";
    gpu.driver = 13000;
    gpu.nccl = 22809;
    change(env, host, gpu);
    const RankFacts facts = place_facts(config, env, host, gpu);
    ranks.push_back(rank_facts(parse_json(to_json(facts).dump(), "test")));  // through the store
  }
  return compare_ranks(ranks, {});
}

TEST(PlaceFacts, AnotherGpuOrDriverIsAWarningThatNamesRankAndValues) {
  const Findings found = compared(RunConfig(), [](LaunchEnv& env, HostFacts& host, GpuFacts& gpu) {
    if (env.rank == 3) gpu.name = "NVIDIA H200";
    if (env.rank == 1) host.gpu_driver = "570.86.15";
  });
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].text,
            "rank 3 on node1: the model of the GPU differs from rank 0's: NVIDIA H200 instead of "
            "NVIDIA H100 80GB HBM3");
  EXPECT_EQ(found[1].text,
            "rank 1 on node0: the NVIDIA driver differs from rank 0's: 570.86.15 instead of "
            "580.65.06");
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(found[i].level, Level::kWarn);
    EXPECT_FALSE(found[i].advice.empty());
  }
  EXPECT_EQ(found[2].level, Level::kOk);  // the rest
  EXPECT_NE(found[2].text.find("the CUDA driver, NCCL"), std::string::npos) << found[2].text;
  EXPECT_EQ(found[2].text.find("NVIDIA"), std::string::npos) << found[2].text;
}

TEST(PlaceFacts, NodesOfAnotherNumberOfRanksWouldCutTheModelInAnotherWay) {
  const auto uneven = [](LaunchEnv& env, HostFacts&, GpuFacts&) {
    env.local_world = env.rank < 2 ? 2 : 1;
  };
  RunConfig config;
  config.dist.mode = DistMode::kHybrid;
  const Findings found = compared(config, uneven);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[1].text,
            "rank 3 on node1: the shard group of a node (dist.shard_size: 0) differs from rank "
            "0's: 1 rank instead of 2 ranks");
  EXPECT_EQ(found[1].level, Level::kFail);
  EXPECT_EQ(found[1].kind, ExitCode::kConfig);
  EXPECT_NE(found[1].advice.find("set dist.shard_size"), std::string::npos);
  config.dist.shard_size = 2;
  EXPECT_EQ(outcome_of({{0, compared(config, uneven)}}), ExitCode::kOk);
  config.dist = {};
  EXPECT_EQ(outcome_of({{0, compared(config, uneven)}}), ExitCode::kOk);
}

}  // namespace
}  // namespace mgm
