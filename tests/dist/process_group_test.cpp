// Every collective of every size against what it is defined as, and what errors and the log say.
#include "dist/process_group.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "rank_threads.h"

namespace mgm {
namespace {

class ProcessGroupTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Worlds, ProcessGroupTest, testing::Values(1, 2, 3, 4, 8));

at::Tensor ramp(int rank, int64_t n, at::ScalarType dtype) {
  return (at::arange(n, at::kFloat) + 100 * rank).to(dtype);
}

TEST_P(ProcessGroupTest, CollectivesDoWhatTheySay) {
  const int world = GetParam();
  run_ranks(world, {}, [&](Ranks& ranks) {
    const int rank = ranks.rank();
    ProcessGroup& group = *ranks.world;
    ASSERT_EQ(group.size(), world);
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong}) {
      for (const int64_t n : {1, 7, 256}) {
        at::Tensor sum = ramp(rank, n, dtype);
        group.all_reduce_sum(sum, "sum").wait();
        at::Tensor expected = at::zeros({n}, sum.options());
        std::vector<at::Tensor> all;
        for (int r = 0; r < world; ++r) {
          expected += ramp(r, n, dtype);
          all.push_back(ramp(r, n, dtype));
        }
        const bool exact = dtype != at::kBFloat16;
        EXPECT_TRUE(!exact || at::equal(sum, expected));

        at::Tensor gathered = at::empty({world * n}, sum.options());
        group.all_gather(gathered, ramp(rank, n, dtype), "gather").wait();
        EXPECT_TRUE(at::equal(gathered, at::cat(all)));
        // In place: this rank's part already lies where it goes.
        at::Tensor in_place = at::full({world * n}, -1, sum.options());
        in_place.narrow(0, rank * n, n).copy_(ramp(rank, n, dtype));
        group.all_gather(in_place, in_place.narrow(0, rank * n, n), "gather in place").wait();
        EXPECT_TRUE(at::equal(in_place, at::cat(all)));

        at::Tensor part = at::empty({n}, sum.options());
        const at::Tensor whole = ramp(rank, world * n, dtype);
        group.reduce_scatter_sum(part, whole, "scatter").wait();
        at::Tensor total = at::zeros({world * n}, sum.options());
        for (int r = 0; r < world; ++r) total += ramp(r, world * n, dtype);
        EXPECT_TRUE(!exact || at::equal(part, total.narrow(0, rank * n, n)));

        at::Tensor from_last = ramp(rank, n, dtype);
        group.broadcast(from_last, world - 1, "broadcast").wait();
        EXPECT_TRUE(at::equal(from_last, ramp(world - 1, n, dtype)));
      }
    }
    group.barrier("end");
  });
}

// Rank r sends (r + s) % 3 rows to rank s: some send or get nothing at all, as experts do.
TEST_P(ProcessGroupTest, AllToAllTakesAnyNumberOfRowsAndNone) {
  const int world = GetParam();
  if (world == 1) return;
  run_ranks(world, {}, [&](Ranks& ranks) {
    const int rank = ranks.rank();
    const auto rows = [](int from, int to) { return int64_t{(from + to) % 3}; };
    std::vector<int64_t> in_rows, out_rows;
    std::vector<at::Tensor> in = {at::empty({0, 5})}, expected = {at::empty({0, 5})};
    for (int other = 0; other < world; ++other) {
      in_rows.push_back(rows(rank, other));
      out_rows.push_back(rows(other, rank));
      in.push_back(at::full({rows(rank, other), 5}, 10.0f * float(rank) + float(other)));
      expected.push_back(at::full({rows(other, rank), 5}, 10.0f * float(other) + float(rank)));
    }
    const at::Tensor want = at::cat(expected);
    at::Tensor out = at::empty(want.sizes());
    ranks.world->all_to_all(out, at::cat(in), out_rows, in_rows, "rows").wait();
    EXPECT_TRUE(at::equal(out, want));
  });
}

TEST(ProcessGroup, AMissingRankIsNamedByGroupOperationAndLabel) {
  const std::shared_ptr<Store> store = make_memory_store();
  std::string message;
  const auto join = [&](int rank, bool calls) {
    LaunchEnv env;
    env.rank = env.local_rank = rank;
    env.world = env.local_world = 2;
    RankSettings settings;
    settings.timeout_s = 2;
    Ranks ranks = place_rank(env, {}, store);
    connect_groups(ranks, settings);
    if (calls) {
      try {
        ranks.world->all_reduce_sum(at::ones({3}), "gradients of block 7").wait();
      } catch (const DistError& e) {
        message = e.what();
      }
      const auto records = ranks.log->records();
      ASSERT_FALSE(records.empty());
      EXPECT_EQ(records.back().label, "gradients of block 7");
      EXPECT_EQ(records.back().numel, 3);
      EXPECT_EQ(records.back().left_s, 0);
    }
    ranks.abort();
  };
  std::thread caller(join, 0, true), silent([&] { join(1, false); });
  caller.join();
  silent.join();
  for (const char* part : {"rank 0 of 2", "all_reduce", "gradients of block 7", "world"}) {
    EXPECT_NE(message.find(part), message.npos) << part << " in: " << message;
  }
}

TEST(Topology, PartsAndReplicas) {
  DistConfig config;
  config.mode = DistMode::kHybrid;
  config.shard_size = 2;
  const Topology t = make_topology(config, 5, 8, 8);
  EXPECT_EQ(t.shard_rank(), 1);
  EXPECT_EQ(t.replica_rank(), 2);
  EXPECT_EQ(t.replicas, 4);
  config.shard_size = 3;
  try {
    make_topology(config, 0, 8, 8);
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(),
                 "dist.shard_size: 3 does not divide the world of 8 ranks; these do: 1, 2, 4, 8");
  }
  config.mode = DistMode::kZero3;
  EXPECT_EQ(make_topology(config, 0, 1, 1).mode, DistMode::kReplicate);
  EXPECT_EQ(padded(1000, 3), 3 * 512);
}

}  // namespace
}  // namespace mgm
