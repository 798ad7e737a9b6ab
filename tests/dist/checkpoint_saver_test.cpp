// Saving beside training: what is saved is the state at save(), whatever happens behind it; a
// failure in the background reaches every rank at the same place.
#include "checkpoint/checkpoint_saver.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "dist/watch.h"
#include "rank_threads.h"
#include "small_state.h"
#include "unit/checkpoint/files.h"

namespace mgm {
namespace {

class SaverTest : public FilesTest {
 protected:
  fs::path dir(int64_t step) const { return train_checkpoint_dir(folder_, step); }
  void expect_saved(int64_t step, int64_t seed) {
    Ranks one = local_ranks({});
    const TrainCheckpoint checkpoint = open_train_checkpoint(dir(step), one);
    SmallState state;
    restore_train_state(checkpoint, *state.store, state.states);
    state.expect_filled(seed, cat("step ", step));
  }
};

DistConfig mode(DistMode m) {
  DistConfig config;
  config.mode = m;
  return config;
}

TEST_F(SaverTest, EverySaveHoldsItsOwnState) {
  for (const bool asynchronous : {true, false}) {
    for (const int world : {1, 3}) {
      fs::remove_all(folder_ / "checkpoints");
      run_ranks(world, mode(DistMode::kZero2), [&](Ranks& ranks) {
        SmallState state(ranks.topology);
        CheckpointSaver saver(folder_, *state.store, state.states, ranks,
                              {asynchronous, /*keep=*/10, 60, {}});
        saver.before_update();  // nothing is under way
        for (int64_t step = 1; step <= 5; ++step) {
          state.fill(step);
          saver.save(small_content(step), Timer());
          if (!asynchronous) {
            EXPECT_EQ(saver.last().step, step) << "not published when save() returned";
          }
          saver.before_update();
          state.fill(1000);  // the next update
          if (step % 2 == 0) saver.before_update();
        }
        saver.finish();
        EXPECT_EQ(saver.last().step, 5);
        EXPECT_GE(saver.last().total_s, 0);
        if (ranks.is_first()) {
          EXPECT_GT(saver.last().bytes, 3 * 4 * 9000u);
        }
      });
      EXPECT_EQ(list_train_checkpoints(folder_), (std::vector<int64_t>{1, 2, 3, 4, 5}));
      for (int64_t step = 1; step <= 5; ++step) expect_saved(step, step);
    }
  }
}

// So large that the copy is under way for long after save() has returned: an update that did not
// wait for it would be in the checkpoint.
TEST_F(SaverTest, UpdatesBehindASaveAreNotInIt) {
  constexpr int64_t kNumel = 12'000'000;
  Param param;
  param.spec.name = "weight";
  param.spec.group = "group";
  param.spec.shape = {kNumel};
  StoreSettings settings;
  settings.gradients = true;
  ParamStore store({&param}, {{true, 1, 0}}, settings);
  ParamGroup& group = store.groups().front();
  const GroupState state{&group, at::full({group.trained.part}, 2, at::kFloat),
                         at::full({group.trained.part}, 3, at::kFloat)};
  Ranks ranks = local_ranks({});
  CheckpointSaver saver(folder_, store, {state}, ranks, {true, 1, 60, {}});
  group.master.fill_(1);
  saver.save(small_content(1), Timer());
  saver.before_update();
  state.exp_avg_sq.fill_(-3);  // what is copied last
  state.exp_avg.fill_(-2);
  group.master.fill_(-1);
  saver.finish();
  const TrainCheckpoint checkpoint = open_train_checkpoint(dir(1), ranks);
  double expected = 0;
  for (const char* kind : kStateKinds) {
    expected += 1;
    checkpoint.read(kind, "weight", 0, kNumel, [&](int64_t, const at::Tensor& values) {
      EXPECT_EQ(values.numel(), kNumel);
      EXPECT_EQ(values.min().item<double>(), expected) << kind;
      EXPECT_EQ(values.max().item<double>(), expected) << kind;
    });
  }
}

TEST_F(SaverTest, FailureInTheBackgroundReachesEveryRankAtTheSamePlace) {
  write_file_atomic(folder_ / "file", "");
  std::vector<std::string> errors;
  std::vector<int> places;
  std::mutex mutex;
  run_ranks(3, mode(DistMode::kZero3), [&](Ranks& ranks) {
    SmallState state(ranks.topology);
    CheckpointSaver saver(folder_ / "file", *state.store, state.states, ranks, {true, 1, 60, {}});
    saver.save(small_content(1), Timer());
    int calls = 0;
    std::string error;
    while (error.empty() && calls < 10'000) {
      ++calls;
      try {
        saver.before_update();
      } catch (const PeerError& e) {  // agreed: nobody is to be blamed for saying it first
        EXPECT_EQ(e.code(), ExitCode::kInternal);
        error = e.what();
      }
    }
    {
      const std::lock_guard lock(mutex);
      errors.push_back(error);
      places.push_back(calls);
    }
    saver.before_update();  // told once
    saver.finish();
  });
  EXPECT_EQ(errors, std::vector<std::string>(3, errors.front()));
  EXPECT_EQ(places, std::vector<int>(3, places.front()));
  EXPECT_NE(errors.front().find("cannot save the checkpoint of step 1: rank 0 on "),
            std::string::npos)
      << errors.front();
  EXPECT_NE(errors.front().find((folder_ / "file").string()), std::string::npos);
}

TEST_F(SaverTest, FailureSurfacesInFinishAndInTheNextSave) {
  write_file_atomic(folder_ / "file", "");
  Ranks ranks = local_ranks({});
  SmallState state;
  CheckpointSaver saver(folder_ / "file", *state.store, state.states, ranks, {true, 1, 60, {}});
  saver.save(small_content(1), Timer());
  EXPECT_THROW(saver.finish(), InternalError);
  EXPECT_NO_THROW(saver.finish());
  saver.save(small_content(1), Timer());
  EXPECT_THROW(saver.save(small_content(2), Timer()), InternalError);
  CheckpointSaver waiting(folder_ / "file", *state.store, state.states, ranks, {false, 1, 60, {}});
  EXPECT_THROW(waiting.save(small_content(1), Timer()), InternalError);
}

// One rank without memory: all save synchronously, since all wait in the same places.
TEST_F(SaverTest, WithoutMemoryForACopySavesWait) {
  run_ranks(2, mode(DistMode::kZero1), [&](Ranks& ranks) {
    SmallState state(ranks.topology);
    state.fill(1);
    SaverSettings settings;
    if (ranks.rank() == 1) settings.host_memory = 1000;
    CheckpointSaver saver(folder_, *state.store, state.states, ranks, settings);
    saver.save(small_content(1), Timer());
    EXPECT_EQ(saver.last().step, 1) << "it is published when save() returns";
    saver.before_update();
  });
  expect_saved(1, 1);
}

TEST_F(SaverTest, AnEndingRunStillWritesWhatItSaved) {
  run_ranks(3, mode(DistMode::kZero2), [&](Ranks& ranks) {
    SmallState state(ranks.topology);
    state.fill(4);
    CheckpointSaver saver(folder_, *state.store, state.states, ranks, {true, 1, 60, {}});
    saver.save(small_content(4), Timer());
  });
  expect_saved(4, 4);
}

// One rank, whose agreement with the others breaks from some point on: one of them hangs.
class BrokenGroup : public ProcessGroup {
 public:
  BrokenGroup() : ProcessGroup("control", 0, 1, nullptr) {}
  bool broken = false;

 protected:
  Pending do_all_reduce_sum(at::Tensor&) override {
    if (broken) throw DistError("rank 1 does not answer");
    return {};
  }
  Pending do_all_gather(at::Tensor&, at::Tensor&) override { return {}; }
  Pending do_reduce_scatter_sum(at::Tensor&, at::Tensor&) override { return {}; }
  Pending do_all_to_all(at::Tensor&, at::Tensor&, std::vector<int64_t>&,
                        std::vector<int64_t>&) override {
    return {};
  }
  Pending do_broadcast(at::Tensor&, int) override { return {}; }
  void do_barrier() override {}
};

TEST_F(SaverTest, ARankThatHangsInItsSaveIsAnErrorAndNotTheEndOfTheProcess) {
  for (const bool asynchronous : {true, false}) {
    Ranks ranks = local_ranks({});
    const auto control = std::make_shared<BrokenGroup>();
    ranks.control = control;
    SmallState state;
    state.fill(1);
    {
      CheckpointSaver saver(folder_, *state.store, state.states, ranks,
                            {asynchronous, /*keep=*/10, 60, {}});
      if (asynchronous) {
        saver.save(small_content(1), Timer());
        control->broken = true;
        EXPECT_THROW(saver.finish(), DistError);
      } else {
        control->broken = true;
        EXPECT_THROW(saver.save(small_content(2), Timer()), DistError);
      }
    }
    expect_saved(asynchronous ? 1 : 2, 1);
  }
}

}  // namespace
}  // namespace mgm
