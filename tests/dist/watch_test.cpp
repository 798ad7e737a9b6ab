// A rank that fails, hangs or disappears: every rank learns which one, where and why.
#include "dist/watch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <future>
#include <regex>

#include "base/strings.h"
#include "dist/blame.h"
#include "rank_threads.h"
#include "train/doctor/gathering.h"

namespace mgm {
namespace {

struct Ended {
  std::string sentence;
  ExitCode code = ExitCode::kOk;
};

// Ranks as threads, each with a watch whose end() keeps the sentence and aborts the rank's groups,
// as leaving the process would. `body` is what a rank does; returns how each rank ended.
std::vector<Ended> watched(int world, const fs::path& dir, const DistTimeouts& limits,
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
      settings.limits = limits;
      settings.beat_s = 0.1;
      settings.run_dir = dir;
      settings.end = [&](const std::string& sentence, ExitCode code, bool) {
        mine = {sentence, code};
        done = true;
      };
      Watch watch(ranks, settings);
      try {
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

void connect(Ranks& ranks) {
  RankSettings settings;
  settings.timeout_s = 6;
  connect_groups(ranks, settings);
}

// The same with groups that are connected.
std::vector<Ended> watched(int world, const fs::path& dir, double step_limit,
                           const std::function<void(Ranks&, Watch&)>& body) {
  return watched(world, dir, {.step = step_limit, .silence = 1.5}, [&](Ranks& ranks, Watch& watch) {
    connect(ranks);
    body(ranks, watch);
  });
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

std::string name_of_host() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

// How long something lasted depends on the machine.
std::string without_seconds(const std::string& sentence) {
  return std::regex_replace(sentence, std::regex("(for|lasted) \\d+ s"), "$1 N s");
}

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
    const std::string found = cat(
        " s: rank 2 on ", name_of_host(),
        " has not entered all_reduce 'gradients of block 3' (number 1 of group world), which ranks "
        "0, 1 wait in; it was at step 7, phase step, and had entered all_reduce 'loss' (number 0 "
        "of group world) last");
    expect_parts(e.sentence, {"step 7, phase step has lasted", "dist.timeout_s.step is 1"});
    EXPECT_TRUE(e.sentence.ends_with(found)) << e.sentence;
  }
  // Whoever has found it out; that rank 2 went on later is not taken for another finding.
  const std::vector<std::string> findings = blame(read_flight_records(dir_));
  ASSERT_EQ(findings.size(), 1u) << join(findings, "\n");
  expect_parts(findings[0], {"found by rank ", ended[0].sentence.c_str()});
}

// Ranks as threads before their groups are connected, with a limit of the start of 1 s.
std::vector<Ended> starting(int world, const fs::path& dir,
                            const std::function<void(Ranks&)>& body) {
  return watched(world, dir, {.start = 1, .step = 60, .silence = 1.5},
                 [&](Ranks& ranks, Watch&) { body(ranks); });
}

// What every rank and `mgm blame` say: that rank 1 of three is behind.
void expect_named(const std::vector<Ended>& ended, const fs::path& dir, const std::string& missing,
                  const std::string& last) {
  for (const Ended& e : ended) {
    EXPECT_EQ(e.code, ExitCode::kDist);
    EXPECT_EQ(e.sentence, ended[0].sentence);  // one message
    expect_parts(e.sentence, {"step 0, phase start has lasted", "dist.timeout_s.start is 1"});
    EXPECT_TRUE(e.sentence.ends_with(
        cat(" s: rank 1 on ", name_of_host(), " has not entered ", missing,
            "; it was at step 0, phase start, and had entered ", last, " last")))
        << e.sentence;
  }
  const std::vector<std::string> findings = blame(read_flight_records(dir));
  ASSERT_EQ(findings.size(), 1u) << join(findings, "\n");
  expect_parts(findings[0], {"found by rank ", ended[0].sentence.c_str()});
}

TEST_F(WatchTest, ARankThatDoesNotComeToARoundOfTheStartIsNamed) {
  const auto ended = starting(3, dir_, [](Ranks& ranks) {
    Gathering gathering(ranks.store->below("start"), ranks.rank(), 3, ranks.log.get());
    gathering.share("a name", "x", 60);
    if (ranks.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(4));
    gathering.gather_all("data", "x", 5);
    gathering.share("data: verdict", "x", 5);
  });
  expect_named(ended, dir_, "'data' of the start, which rank 0 waits in", "'a name' of the start");
}

TEST_F(WatchTest, ARankThatDoesNotComeToConnectIsNamed) {
  const auto ended = starting(3, dir_, [](Ranks& ranks) {
    if (ranks.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(4));
    connect(ranks);
  });
  expect_named(ended, dir_, "the connecting of group control, which ranks 0, 2 wait in",
               "nothing of that group");
}

double seconds_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// Rank 0 of two; rank 1 has given one sign of life and no other.
Ranks beside_a_silent_rank(const std::shared_ptr<Store>& store = make_memory_store()) {
  FlightRecord last;
  last.rank = 1;
  last.world = 2;
  last.host = "gpu17";
  last.phase = "step";
  last.step = 99;
  store->below("watch")->set("beat/1", Json{{"beat", 0}, {"record", to_json(last)}}.dump());
  LaunchEnv env;
  env.world = env.local_world = 2;
  return place_rank(env, {}, store);
}

// Its heartbeat stops without a word, as after kill -9.
TEST_F(WatchTest, ARankWithoutSignOfLifeIsNamed) {
  const Ranks ranks = beside_a_silent_rank();
  std::promise<Ended> ended;
  WatchSettings settings;
  settings.beat_s = 0.1;
  settings.limits.silence = 0.8;
  settings.run_dir = dir_;
  settings.end = [&](const std::string& sentence, ExitCode code, bool) {
    ended.set_value({sentence, code});
  };
  const Watch watch(ranks, settings);
  auto future = ended.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  const Ended e = future.get();
  EXPECT_EQ(e.code, ExitCode::kDist);
  EXPECT_EQ(without_seconds(e.sentence),
            "rank 1 on gpu17 has given no sign of life for N s: killed, or its host or network is "
            "gone. It was at step 99, phase step, last collective: 'no collective'");
  EXPECT_EQ(blame(read_flight_records(dir_)),
            (std::vector<std::string>{cat("found by rank 0 on ", name_of_host(), ": ", e.sentence),
                                      "rank 1 left no record: killed, or the host is gone"}));
}

// As a rank that is stopped: behind nobody, for it has entered what the others wait in.
TEST_F(WatchTest, ARankThatStopsWithinACollectiveIsNamed) {
  const Ranks ranks = beside_a_silent_rank();
  std::promise<Ended> ended;
  WatchSettings settings;
  settings.beat_s = 0.1;
  settings.limits.start = 0.5;
  settings.limits.silence = 6;  // the limit of the phase comes first
  settings.run_dir = dir_;
  settings.end = [&](const std::string& sentence, ExitCode code, bool) {
    ended.set_value({sentence, code});
  };
  std::optional<Watch> watch(std::in_place, ranks, settings);
  const Ended e = ended.get_future().get();
  const auto left = std::chrono::steady_clock::now();
  watch.reset();
  EXPECT_LT(seconds_since(left), 2);  // it does not wait for a rank that it has found silent
  EXPECT_EQ(e.code, ExitCode::kDist);
  EXPECT_EQ(without_seconds(e.sentence),
            cat("step 0, phase start has lasted N s on rank 0 (", name_of_host(),
                "), the limit dist.timeout_s.start is 0.5 s: rank 1 on gpu17 has given no sign of "
                "life for N s: stopped, or its host or network is gone. It was at step 99, phase "
                "step, last collective: 'no collective'"));
}

// Another rank has found the hang, and this one's groups have broken with it.
TEST_F(WatchTest, TheFirstRankWaitsForASilentOneNoLongerThanOneMayBeSilent) {
  const Ranks ranks = beside_a_silent_rank();
  WatchSettings settings;
  settings.beat_s = 0.1;
  settings.limits.silence = 4;
  const auto began = std::chrono::steady_clock::now();
  std::optional<Watch> watch(std::in_place, ranks, settings);
  std::this_thread::sleep_for(std::chrono::seconds(2));
  watch->failed(std::make_exception_ptr(PeerError(ExitCode::kDist, "rank 1 hangs")));
  watch.reset();
  EXPECT_GT(seconds_since(began), 3.5);  // it may still say that it has ended
  EXPECT_LT(seconds_since(began), 5.5);
}

// Answers nobody for a while, as where the rank that serves it is stopped: once, from when it is
// asked for a sign of life of rank 1.
class StoppedStore : public c10d::HashStore {
 public:
  bool check(const std::vector<std::string>& keys) override {
    double seconds = 0;
    if (keys.at(0).ends_with("beat/1")) seconds = stops_for.exchange(0);
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
    if (seconds > 0) on_going_on();
    return HashStore::check(keys);
  }
  std::atomic<double> stops_for = 0;
  std::function<void()> on_going_on = [] {};
};

// The first rank is stopped for as long as a rank may be silent; rank 1 has given it up and ended.
TEST_F(WatchTest, TheFirstRankStoppedBlamesItselfAndNotThoseThatItHasNotHeard) {
  const auto impl = c10::make_intrusive<StoppedStore>();
  const Ranks ranks = beside_a_silent_rank(std::make_shared<Store>(impl));
  std::promise<Ended> ended;
  WatchSettings settings;
  settings.beat_s = 0.5;
  settings.limits.silence = 1.5;
  settings.end = [&](const std::string& sentence, ExitCode code, bool) {
    ended.set_value({sentence, code});
  };
  impl->stops_for = 1.2;  // from one look to the next 1.7 s
  const Watch watch(ranks, settings);
  const Ended e = ended.get_future().get();
  EXPECT_EQ(e.code, ExitCode::kDist);
  EXPECT_EQ(without_seconds(e.sentence), cat("rank 0 on ", name_of_host(),
                                             " has stood still for N s: stopped, or its host was"));
}

// Stopped for less, it goes on: what rank 1 says in the meantime comes a little later.
TEST_F(WatchTest, NobodyIsSilentForTheTimeThatTheFirstRankWasStopped) {
  const auto impl = c10::make_intrusive<StoppedStore>();
  const auto store = std::make_shared<Store>(impl);
  const Ranks ranks = beside_a_silent_rank(store);
  WatchSettings settings;
  settings.beat_s = 0.1;
  settings.limits.silence = 3;
  settings.end = [](const std::string& sentence, ExitCode, bool) { ADD_FAILURE() << sentence; };
  std::promise<void> goes_on;
  impl->on_going_on = [&] { goes_on.set_value(); };
  const Watch watch(ranks, settings);
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));
  impl->stops_for = 2.4;
  goes_on.get_future().wait();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  store->below("watch")->set("done/1", "1");
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // still nothing
}

}  // namespace
}  // namespace mgm
