// Checkpoints of many ranks: any world and mode reads what any other wrote, to the bit; one rank's
// failure is every rank's; a damaged shard is refused by name everywhere.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "base/error.h"
#include "checkpoint/compare.h"
#include "dist/agreement.h"
#include "rank_threads.h"
#include "small_state.h"
#include "unit/checkpoint/files.h"

namespace mgm {
namespace {

struct Shape {
  DistMode mode;
  int world;
  int64_t shard_size = 0;

  DistConfig config() const {
    DistConfig c;
    c.mode = mode;
    c.shard_size = shard_size;
    return c;
  }
  std::string text() const { return cat(name_of(mode), "_", world); }
};

std::vector<Shape> shapes() {
  return {{DistMode::kReplicate, 1}, {DistMode::kReplicate, 3}, {DistMode::kZero1, 2},
          {DistMode::kZero2, 3},     {DistMode::kZero3, 4},     {DistMode::kHybrid, 4, 2},
          {DistMode::kHybrid, 6, 3}, {DistMode::kZero3, 8}};
}

class RanksCheckpoint : public FilesTest {
 protected:
  fs::path dir(int64_t step) const { return train_checkpoint_dir(folder_, step); }
  void write(const Shape& shape, int64_t step, int64_t seed, int64_t keep = 100,
             at::ScalarType dtype = at::kFloat) {
    run_ranks(shape.world, shape.config(), [&](Ranks& ranks) {
      SmallState state(ranks.topology, dtype);
      state.fill(seed);
      save_small(folder_, state, ranks, step, keep);
    });
  }
  void expect_reads(const Shape& shape, int64_t step, int64_t seed, const std::string& what,
                    at::ScalarType dtype = at::kFloat) {
    run_ranks(shape.world, shape.config(), [&](Ranks& ranks) {
      const TrainCheckpoint checkpoint = open_train_checkpoint(dir(step), ranks);
      SmallState state(ranks.topology, dtype);
      restore_train_state(checkpoint, *state.store, state.states);
      state.expect_filled(seed, what + " -> " + shape.text());
    });
  }
  // Runs `act` on every rank; all must end with an error of this type and the same text.
  template <class E>
  std::string same_error(const Shape& shape, const std::function<void(Ranks&)>& act) {
    std::vector<std::string> texts;
    std::mutex mutex;
    run_ranks(shape.world, shape.config(), [&](Ranks& ranks) {
      std::string text = "(none)";
      try {
        act(ranks);
      } catch (const E& e) {
        text = e.what();
      }
      const std::lock_guard lock(mutex);
      texts.push_back(text);
    });
    EXPECT_EQ(texts, std::vector<std::string>(texts.size(), texts.front()));
    return texts.front();
  }
};

void expect_in(const std::string& text, std::initializer_list<std::string> parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), text.npos) << part << "\n" << text;
}

TEST_F(RanksCheckpoint, EveryWorldAndModeReadsWhatEveryOtherWrote) {
  int64_t step = 0;
  for (const Shape& writer : shapes()) {
    ++step;
    write(writer, step, step);
    for (const Shape& reader : shapes()) expect_reads(reader, step, step, writer.text());
  }
}

// Masters stay fp32 where weights are used in bf16.
TEST_F(RanksCheckpoint, Bf16RunsKeepTheirMasters) {
  write({DistMode::kZero2, 3}, 1, 1, 100, at::kBFloat16);
  expect_reads({DistMode::kZero3, 2}, 1, 1, "bf16", at::kBFloat16);
  expect_reads({DistMode::kReplicate, 1}, 1, 1, "bf16", at::kFloat);
}

TEST_F(RanksCheckpoint, ReadAndWrittenAgainByEverMoreAndFewerRanks) {
  write({DistMode::kReplicate, 1}, 1, 7);
  const std::vector<Shape> chain = {{DistMode::kZero1, 2},
                                    {DistMode::kZero3, 3},
                                    {DistMode::kZero2, 8},
                                    {DistMode::kHybrid, 4, 2},
                                    {DistMode::kReplicate, 1}};
  int64_t step = 1;
  for (const Shape& shape : chain) {
    run_ranks(shape.world, shape.config(), [&](Ranks& ranks) {
      const TrainCheckpoint checkpoint = open_train_checkpoint(dir(step), ranks);
      SmallState state(ranks.topology);
      restore_train_state(checkpoint, *state.store, state.states);
      save_small(folder_, state, ranks, step + 1);
    });
    ++step;
  }
  Ranks one = local_ranks({});
  const TrainCheckpoint first = open_train_checkpoint(dir(1), one);
  for (int64_t s = 2; s <= step; ++s) {
    const CheckpointDifference found =
        compare_checkpoints(first, open_train_checkpoint(dir(s), one));
    EXPECT_TRUE(found.parameters.empty() && found.only_a.empty() && found.only_b.empty()) << s;
    EXPECT_EQ(found.equal_parameters, 5);
    EXPECT_EQ(found.frozen, std::vector<std::string>{"blocks.0"}) << "its hash names the step";
  }
}

// Each rank has a file, the state is in it once, and ranks that hold the same share the writing.
TEST_F(RanksCheckpoint, EveryElementIsWrittenOnce) {
  for (const Shape& shape : shapes()) {
    fs::remove_all(folder_ / "checkpoints");
    write(shape, 1, 1);
    const TrainCheckpoint checkpoint(dir(1));
    EXPECT_EQ(checkpoint.manifest().world, shape.world);
    int64_t numel = 0, stored = 0, smallest = INT64_MAX;
    for (const StateGroup& group : checkpoint.layout().groups) numel += group.numel;
    for (int rank = 0; rank < shape.world; ++rank) {
      const SourcePtr shard = open_safetensors(dir(1) / shard_file(rank));
      int64_t here = 0;
      for (const std::string& name : shard->names())
        here += static_cast<int64_t>(shard->info(name).bytes / sizeof(float));
      stored += here;
      smallest = std::min(smallest, here);
    }
    EXPECT_EQ(stored, 3 * numel) << shape.text();
    EXPECT_GT(smallest, 0) << shape.text();
    for (const StateGroup& group : checkpoint.layout().groups) {
      for (const StateSegment& s : group.segments) EXPECT_EQ(s.offset % kFlatAlign, 0) << s.name;
    }
  }
}

TEST_F(RanksCheckpoint, OneRanksFailureIsEverybodysAndLeavesEarlierOnes) {
  const Shape shape{DistMode::kZero2, 3};
  write(shape, 1, 1);
  const std::string error = same_error<InternalError>(shape, [&](Ranks& ranks) {
    const std::atomic<bool> never{false};
    SaveChannel channel(ranks.store, "save", ranks.rank(), ranks.size(), 60, never);
    SmallState state(ranks.topology);
    const std::vector<ShardTensor> shard = shard_tensors(state.states, ranks.topology);
    write_train_checkpoint(
        folder_, small_content(2), state_layout(*state.store),
        [&]() -> const std::vector<ShardTensor>& {
          if (ranks.rank() == 2) throw InternalError("the bottom of the barrel");
          return shard;
        },
        1, channel);
  });
  expect_in(error, {"cannot save the checkpoint of step 2", "rank 2 on ",
                    "the bottom of the barrel", "Earlier checkpoints are untouched"});
  EXPECT_EQ(list_train_checkpoints(folder_), std::vector<int64_t>{1});
  EXPECT_FALSE(fs::exists(temporary_checkpoint_dir(folder_, 2)));
  expect_reads(shape, 1, 1, "after a failure");
}

// A limit on file sizes stands for a full disk.
TEST_F(RanksCheckpoint, FullDiskOnAllRanks) {
  const Shape shape{DistMode::kZero3, 3};
  write(shape, 1, 1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limited = before;
  limited.rlim_cur = 4000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
  const std::string error = same_error<InternalError>(shape, [&](Ranks& ranks) {
    SmallState state(ranks.topology);
    save_small(folder_, state, ranks, 2, 1);
  });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, ignored);
  expect_in(error,
            {"step 2", "rank 0 on ", "rank_0.safetensors", "File too large", "and 2 more ranks"});
  EXPECT_EQ(list_train_checkpoints(folder_), std::vector<int64_t>{1});
  EXPECT_FALSE(fs::exists(temporary_checkpoint_dir(folder_, 2)));
}

TEST_F(RanksCheckpoint, FolderThatCannotBeMade) {
  write_file_atomic(folder_ / "file", "");
  const std::string error = same_error<InternalError>({DistMode::kZero1, 2}, [&](Ranks& ranks) {
    SmallState state(ranks.topology);
    save_small(folder_ / "file", state, ranks, 2);
  });
  expect_in(error, {"step 2", (folder_ / "file" / "checkpoints").string()});
}

// A rank that is gone is named, within the time limit.
TEST_F(RanksCheckpoint, RankThatNeverReportsIsNamed) {
  std::string error;
  run_ranks(3, {}, [&](Ranks& ranks) {
    if (ranks.rank() == 1) return;
    const std::atomic<bool> never{false};
    SaveChannel channel(ranks.store, "save", ranks.rank(), ranks.size(), 0.5, never);
    SmallState state(ranks.topology);
    const std::vector<ShardTensor> shard = shard_tensors(state.states, ranks.topology);
    try {
      write_train_checkpoint(
          folder_, small_content(2), state_layout(*state.store),
          [&]() -> const std::vector<ShardTensor>& { return shard; }, 1, channel);
    } catch (const InternalError& e) {
      if (ranks.is_first()) error = e.what();
    }
  });
  expect_in(error,
            {"every rank's shard within 0.5 s", "dist.timeout_s.save", "not heard of: rank 1"});
  EXPECT_TRUE(list_train_checkpoints(folder_).empty());
}

TEST_F(RanksCheckpoint, DamageIsNamedOnEveryRankAndAnOlderOneOffered) {
  const Shape writer{DistMode::kZero2, 3};
  const fs::path shard = dir(2) / "rank_1.safetensors";
  const auto refused = [&](std::initializer_list<std::string> parts) {
    for (const Shape& reader :
         {Shape{DistMode::kReplicate, 1}, Shape{DistMode::kZero3, 2}, Shape{DistMode::kZero1, 5}}) {
      const std::string error = same_error<CheckpointError>(
          reader, [&](Ranks& ranks) { open_train_checkpoint(dir(2), ranks); });
      expect_in(error, parts);
      expect_in(error, {"The checkpoint of step 1 is whole", "--resume " + dir(1).string()});
    }
  };
  write(writer, 1, 1);
  write(writer, 2, 2);
  const std::string whole = read_file(shard);
  write_file_atomic(shard, whole.substr(0, whole.size() / 2));
  refused({shard.string(), "truncated or altered"});
  fs::remove(shard);
  refused({shard.string(), "cannot be read: No such file"});
  std::string altered = whole;
  altered[whole.size() - 5] = static_cast<char>(altered[whole.size() - 5] ^ 4);
  write_file_atomic(shard, altered);
  refused({shard.string(), "altered"});
  fs::copy_file(dir(1) / "rank_1.safetensors", shard, fs::copy_options::overwrite_existing);
  refused({shard.string(), "shard of rank 1 of 3 of step 1", "of step 2", "mixed"});
  fs::copy_file(dir(2) / "rank_2.safetensors", shard, fs::copy_options::overwrite_existing);
  refused({shard.string(), "shard of rank 2", "mixed"});
  fs::remove(dir(2) / "manifest.json");
  refused({dir(2).string(), "no manifest.json"});
}

// A big checkpoint is read once, not once per rank: whichever file is bad, exactly one rank reads
// it and all are told.
TEST_F(RanksCheckpoint, VerifyingIsSharedOut) {
  const Shape writer{DistMode::kZero3, 4};
  for (int damaged = 0; damaged < writer.world; ++damaged) {
    write(writer, 1, 1);
    const fs::path shard = dir(1) / shard_file(damaged);
    write_file_atomic(shard, read_file(shard) + "x");
    const std::string error = same_error<CheckpointError>(
        writer, [&](Ranks& ranks) { verify_train_checkpoint(dir(1), ranks); });
    expect_in(error, {shard.string()});
  }
  // Damage everywhere: what the first rank finds is what all say.
  for (int rank = 0; rank < writer.world; ++rank) {
    const fs::path shard = dir(1) / shard_file(rank);
    write_file_atomic(shard, "x");
  }
  const std::string error = same_error<CheckpointError>(
      writer, [&](Ranks& ranks) { verify_train_checkpoint(dir(1), ranks); });
  expect_in(error, {"rank_", "truncated or altered"});
}

TEST(Agreement, TextsAndErrorsReachEveryRank) {
  run_ranks(3, {}, [](Ranks& ranks) {
    const std::string mine(static_cast<size_t>(ranks.rank() * 7),
                           static_cast<char>('a' + ranks.rank()));
    EXPECT_EQ(gather_texts(ranks, mine, "test"),
              (std::vector<std::string>{"", std::string(7, 'b'), std::string(14, 'c')}));
    EXPECT_EQ(gather_texts(ranks, "", "test"), std::vector<std::string>(3));
    EXPECT_NO_THROW(together(ranks, "test", [] {}));
    try {
      together(ranks, "test", [&] {
        if (ranks.rank() > 0) throw DataError("trouble on ", ranks.rank());
      });
      ADD_FAILURE() << "no error on rank " << ranks.rank();
    } catch (const DataError& e) {
      EXPECT_EQ(std::string(e.what()), "trouble on 1");
    }
    EXPECT_THROW(together(ranks, "test",
                          [&] {
                            if (ranks.is_first()) throw std::runtime_error("of a library");
                          }),
                 InternalError);
  });
}

}  // namespace
}  // namespace mgm
