// A rank that fails, hangs or disappears: every rank learns which one, where and why.
#include "dist/watch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>

#include "rank_threads.h"

namespace mgm {
namespace {

struct Ended {
  std::string sentence;
  ExitCode code = ExitCode::kOk;
};

// Ranks as threads, each with a watch whose end() keeps the sentence and aborts the rank's groups,
// as leaving the process would. `body` is what a rank does; returns how each rank ended.
std::vector<Ended> watched(int world, const fs::path& dir, double step_limit,
                           const std::function<void(Ranks&, Watch&)>& body) {
  const std::shared_ptr<Store> store = make_memory_store();
  std::vector<Ended> ended(static_cast<size_t>(world));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      LaunchEnv env;
      env.rank = env.local_rank = rank;
      env.world = env.local_world = world;
      Ranks ranks = place_rank(env, {}, store);
      Ended& mine = ended[static_cast<size_t>(rank)];
      std::atomic<bool> done = false;
      WatchSettings settings;
      settings.limits.step = step_limit;
      settings.beat_s = 0.1;
      settings.silence_s = 1.5;
      settings.run_dir = dir;
      settings.end = [&](const std::string& sentence, ExitCode code) {
        mine = {sentence, code};
        done = true;
      };
      Watch watch(ranks, settings);
      try {
        RankSettings connect;
        connect.timeout_s = 6;
        connect_groups(ranks, connect);
        body(ranks, watch);
      } catch (...) {
        try {
          std::rethrow_exception(watch.failed(std::current_exception()));
        } catch (const Error& e) {
          if (!done) mine = {e.what(), e.code()};
        }
      }
      ranks.abort();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ended;
}

class WatchTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / cat("mgm_watch_", ::getpid(), "_", counter_++);
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  fs::path dir_;
  static inline int counter_ = 0;
};

void expect_parts(const std::string& text, std::initializer_list<const char*> parts) {
  for (const char* part : parts) EXPECT_NE(text.find(part), text.npos) << part << " in: " << text;
}

TEST_F(WatchTest, NothingHappensWhenAllEndWell) {
  for (const Ended& e : watched(3, dir_, 60, [](Ranks& ranks, Watch& watch) {
         for (int64_t step = 1; step <= 3; ++step) {
           watch.enter(Phase::kStep, step);
           ranks.control->all_reduce_sum(at::ones({1}), "count").wait();
         }
         ranks.control->barrier("end");
       })) {
    EXPECT_EQ(e.code, ExitCode::kOk) << e.sentence;
  }
  EXPECT_FALSE(fs::exists(dir_ / "flight"));
}

TEST_F(WatchTest, AnErrorOfOneRankEndsAllWithItsCauseAndCode) {
  const auto ended = watched(3, dir_, 60, [](Ranks& ranks, Watch& watch) {
    watch.enter(Phase::kStep, 41);
    ranks.control->all_reduce_sum(at::ones({1}), "count").wait();
    if (ranks.rank() == 1) throw DataError("data/x.json: record 7: cat.jpg is cut in half");
    watch.enter(Phase::kStep, 42);
    ranks.control->all_reduce_sum(at::ones({1}), "count").wait();
  });
  for (size_t rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(ended[rank].code, ExitCode::kData) << ended[rank].sentence;
    expect_parts(ended[rank].sentence, {"cat.jpg is cut in half"});
    if (rank != 1) expect_parts(ended[rank].sentence, {"rank 1 on", "step 41", "phase step"});
  }
  const std::vector<std::string> findings = blame(read_flight_records(dir_));
  expect_parts(findings.front(), {"rank 1", "step 41", "cat.jpg is cut in half"});
}

TEST_F(WatchTest, AHangNamesTheRankThatIsBehind) {
  const auto ended = watched(3, dir_, 1.0, [](Ranks& ranks, Watch& watch) {
    watch.enter(Phase::kStep, 7);
    ranks.world->all_reduce_sum(at::ones({1}), "loss").wait();
    if (ranks.rank() == 2) std::this_thread::sleep_for(std::chrono::seconds(5));
    ranks.world->all_reduce_sum(at::ones({9}), "gradients of block 3").wait();
  });
  for (const Ended& e : ended) {
    EXPECT_EQ(e.code, ExitCode::kDist);
    expect_parts(e.sentence, {"rank 2 on", "has not entered all_reduce 'gradients of block 3'",
                              "ranks 0, 1 wait in", "step 7", "dist.timeout_s.step is 1"});
  }
  expect_parts(blame(read_flight_records(dir_)).front(), {"rank"});
}

// Its heartbeat stops without a word, as after kill -9.
TEST_F(WatchTest, ARankWithoutSignOfLifeIsNamed) {
  const std::shared_ptr<Store> store = make_memory_store();
  // The vanished rank: beats once by hand.
  FlightRecord last;
  last.rank = 1;
  last.world = 2;
  last.host = "gpu17";
  last.phase = "step";
  last.step = 99;
  store->below("watch")->set("beat/1", Json{{"beat", 0}, {"record", to_json(last)}}.dump());
  LaunchEnv env;
  env.world = env.local_world = 2;
  Ranks ranks = place_rank(env, {}, store);
  std::promise<Ended> ended;
  WatchSettings settings;
  settings.beat_s = 0.1;
  settings.silence_s = 0.8;
  settings.run_dir = dir_;
  settings.end = [&](const std::string& sentence, ExitCode code) {
    ended.set_value({sentence, code});
  };
  const Watch watch(ranks, settings);
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  const Ended e = future.get();
  EXPECT_EQ(e.code, ExitCode::kDist);
  expect_parts(e.sentence, {"rank 1 on gpu17 has given no sign of life", "step 99"});
}

TEST(Blame, FindsDifferentCollectivesAndMissingRanks) {
  const auto record = [](int rank, const char* label, int64_t numel) {
    FlightRecord r;
    r.rank = rank;
    r.world = 3;
    r.host = "h";
    r.phase = "step";
    CollectiveRecord c;
    c.group = "gather.0";
    c.sequence = 5;
    c.operation = "all_gather";
    c.label = label;
    c.dtype = "Float";
    c.numel = numel;
    c.left_s = 1;
    r.collectives = {c};
    return r;
  };
  const auto findings = blame({record(0, "block 1", 8), record(2, "block 2", 8)});
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_EQ(findings[0], "rank 1 left no record: killed, or the host is gone");
  expect_parts(findings[1], {"number 5 of group gather.0 differs", "'block 1'", "'block 2'"});
  // It waits for what another has ended, and is not sent.
  FlightRecord waits = record(0, "b", 8);
  waits.collectives[0].left_s = 0;
  expect_parts(blame({waits, record(1, "b", 8), record(2, "b", 8)}).front(),
               {"rank 1 on h, rank 2 on h have ended all_gather 'b'", "which rank 0 waits in"});
  const auto agree = blame({record(0, "b", 8), record(1, "b", 8), record(2, "b", 8)});
  expect_parts(agree.front(), {"the records of 3 ranks agree"});
  // A size that differs is a fault, but for rows that each rank has another number of.
  std::vector<FlightRecord> sizes = {record(0, "b", 8), record(1, "b", 9), record(2, "b", 8)};
  expect_parts(blame(sizes).front(), {"number 5 of group gather.0 differs", "of 9 Float"});
  for (FlightRecord& r : sizes) r.collectives[0].operation = "all_to_all";
  expect_parts(blame(sizes).front(), {"the records of 3 ranks agree"});
}

}  // namespace
}  // namespace mgm
