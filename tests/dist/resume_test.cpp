// Training that goes on from a checkpoint: to the bit with the same ranks and mode, and, with
// strict sums, with any others.
#include <gtest/gtest.h>

#include "base/hash.h"
#include "checkpoint/checkpoint_saver.h"
#include "checkpoint/compare.h"
#include "rank_threads.h"
#include "tiny_model.h"
#include "train/recompute.h"
#include "train/run_state.h"
#include "unit/checkpoint/files.h"

namespace mgm {
namespace {

constexpr int64_t kGlobalBatch = 12;

// This rank's micro-batches of a step, dealt as the loader deals them.
std::vector<Batch> deal(const MiniGemini& model, const RunConfig& config, const Ranks& ranks,
                        int64_t step) {
  const int64_t micro = config.train.micro_batch, leaf = leaf_micro_batches(config);
  std::vector<Batch> out;
  for (int64_t first = 0; first < kGlobalBatch; first += micro) {
    if (first / micro / leaf % ranks.size() != ranks.rank()) continue;
    std::vector<Sample> samples;
    for (int64_t i = first; i < first + micro; ++i)
      samples.push_back(tiny_sample(model, 100 * step + i, i % 3, 6 + i % 5));
    out.push_back(pack(samples, 0, 0));
  }
  return out;
}

struct Part {
  DistMode mode;
  int world;
  int64_t shard_size = 0;
  int64_t experts = 1;  // dealt to
};

class ResumeTest : public FilesTest {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }

  static RunConfig config() {
    RunConfig c = tiny_config();
    c.train.global_batch = kGlobalBatch;
    c.train.micro_batch = 1;  // several per rank and step
    c.optimizer.clip_norm = 1;
    c.optimizer.weight_decay = 0.01;
    return c;
  }

  // Steps first..last; begins from the checkpoint of step first - 1 of `from`, saves every step to
  // `to`. Returns losses and norms as rank 0 sees them.
  static std::vector<double> train(RunConfig c, const Part& part, int64_t first, int64_t last,
                                   const fs::path& from, const fs::path& to,
                                   bool asynchronous = true) {
    c.dist.mode = part.mode;
    c.dist.shard_size = part.shard_size;
    c.dist.expert_parallel = part.experts;
    std::vector<double> numbers;
    run_ranks(part.world, c.dist, [&](Ranks& ranks) {
      TinyModel tiny(c, at::kFloat, at::kCPU, ranks.topology);
      TrainModule module(tiny.config, tiny.model, *tiny.store, make_recompute_runner({}), ranks);
      if (first > 1) {
        restore(open_train_checkpoint(train_checkpoint_dir(from, first - 1), ranks), module);
      }
      module.engine().parameters_loaded();
      CheckpointSaver saver(to, *tiny.store, train_state(module), ranks,
                            {asynchronous, /*keep=*/100, 60, {}});
      module.before_update([&] { saver.before_update(); });
      for (int64_t step = first; step <= last; ++step) {
        const std::vector<Batch> batches = deal(tiny.model, c, ranks, step);
        const StepResult result = module.step(batches, agree(ranks, c, batches), step, 1e-3);
        if (ranks.is_first()) {
          numbers.push_back(result.loss.item<double>());
          numbers.push_back(result.grad_norm.item<double>());
        }
        CheckpointContent content;
        content.step = step;
        saver.save(std::move(content), Timer());
      }
      saver.finish();
    });
    return numbers;
  }

  static void expect_same_files(const fs::path& a, const fs::path& b, int64_t step, int world,
                                const std::string& what) {
    for (int rank = 0; rank < world; ++rank) {
      EXPECT_EQ(hash_file(train_checkpoint_dir(a, step) / shard_file(rank)),
                hash_file(train_checkpoint_dir(b, step) / shard_file(rank)))
          << what << ", rank " << rank;
    }
  }

  // Step after step in another way, each from the last one's checkpoint: numbers and files are
  // those of one rank that never stopped. `parameters`: there are more.
  void expect_bits_of_one_rank(const RunConfig& c, const std::vector<Part>& chain, int parameters) {
    const auto last = static_cast<int64_t>(chain.size());
    const std::vector<double> all =
        train(c, {DistMode::kReplicate, 1}, 1, last, "", folder_ / "whole");
    std::vector<double> pieces;
    int64_t step = 1;
    for (const Part& part : chain) {
      const std::vector<double> more =
          train(c, part, step, step, folder_ / "chain", folder_ / "chain");
      pieces.insert(pieces.end(), more.begin(), more.end());
      ++step;
    }
    EXPECT_EQ(pieces, all);
    Ranks one = local_ranks({});
    const CheckpointDifference found = compare_checkpoints(
        open_train_checkpoint(train_checkpoint_dir(folder_ / "whole", last), one),
        open_train_checkpoint(train_checkpoint_dir(folder_ / "chain", last), one));
    EXPECT_TRUE(found.equal());
    EXPECT_GT(found.equal_parameters, parameters);
  }
};

TEST_F(ResumeTest, TheSameRanksAndModeGoOnToTheBit) {
  const Part parts[] = {{DistMode::kReplicate, 1}, {DistMode::kReplicate, 2},
                        {DistMode::kZero1, 2},     {DistMode::kZero2, 3},
                        {DistMode::kZero3, 2},     {DistMode::kHybrid, 4, 2}};
  for (const Part& part : parts) {
    const std::string what = cat(name_of(part.mode), " over ", part.world);
    const fs::path whole = folder_ / what / "whole", cut = folder_ / what / "cut";
    const std::vector<double> all = train(config(), part, 1, 3, "", whole);
    const std::vector<double> rest = train(config(), part, 2, 3, whole, cut);
    EXPECT_EQ(std::vector<double>(all.begin() + 2, all.end()), rest) << what;
    expect_same_files(whole, cut, 3, part.world, what);
  }
}

TEST_F(ResumeTest, StrictSumsGoOnToTheBitWithAnyRanksAndMode) {
  RunConfig c = config();
  c.dist.reduction = Reduction::kStrict;
  c.dist.virtual_shards = 12;
  const std::vector<Part> chain = {{DistMode::kZero2, 2},
                                   {DistMode::kZero3, 4},
                                   {DistMode::kReplicate, 1},
                                   {DistMode::kZero1, 3},
                                   {DistMode::kHybrid, 4, 2}};
  expect_bits_of_one_rank(c, chain, 50);
}

RunConfig with_experts(RunConfig c) {
  c.model.llm.arch = LlmArch::kMixtral;
  c.model.llm.num_experts = 4;
  c.model.llm.router_aux_loss = 0.05;
  return c;
}

TEST_F(ResumeTest, DealtExpertsGoOnToTheBit) {
  const Part parts[] = {{DistMode::kZero2, 4, 0, 2},
                        {DistMode::kZero3, 4, 0, 4},
                        {DistMode::kReplicate, 4, 0, 2},
                        {DistMode::kHybrid, 4, 2, 2}};
  for (const Part& part : parts) {
    const std::string what = cat(name_of(part.mode), ", experts on ", part.experts);
    const fs::path whole = folder_ / what / "whole", cut = folder_ / what / "cut";
    const RunConfig c = with_experts(config());
    const std::vector<double> all = train(c, part, 1, 3, "", whole);
    const std::vector<double> rest = train(c, part, 2, 3, whole, cut);
    EXPECT_EQ(std::vector<double>(all.begin() + 2, all.end()), rest) << what;
    expect_same_files(whole, cut, 3, part.world, what);
  }
}

// A checkpoint knows no deal: any other goes on from it, and none does.
TEST_F(ResumeTest, StrictSumsGoOnWithExpertsDealtInAnyWay) {
  RunConfig c = with_experts(config());
  c.dist.reduction = Reduction::kStrict;
  c.dist.virtual_shards = 12;
  const std::vector<Part> chain = {{DistMode::kZero2, 4, 0, 4}, {DistMode::kZero3, 2, 0, 2},
                                   {DistMode::kZero1, 3, 0, 1}, {DistMode::kHybrid, 4, 2, 2},
                                   {DistMode::kReplicate, 1},   {DistMode::kReplicate, 4, 0, 2}};
  expect_bits_of_one_rank(c, chain, 70);
}

// Adapters with dropout beside frozen weights, and a fully trained bridge.
TEST_F(ResumeTest, AdaptersGoOnToTheBit) {
  RunConfig c = config();
  c.model.adapter.kind = AdapterKind::kLora;
  c.model.adapter.rank = 3;
  c.model.adapter.dropout = 0.2;
  TrainRule bridge, adapter;
  bridge.preset = RulePreset::kStage1;
  adapter.preset = RulePreset::kAdapter;
  c.train.rules = {bridge, adapter};
  for (const Part& part : {Part{DistMode::kReplicate, 1}, Part{DistMode::kZero3, 2}}) {
    const std::string what = cat("adapters, ", name_of(part.mode));
    const fs::path whole = folder_ / what / "whole", cut = folder_ / what / "cut";
    const std::vector<double> all = train(c, part, 1, 4, "", whole);
    const std::vector<double> rest = train(c, part, 3, 4, whole, cut);
    EXPECT_EQ(std::vector<double>(all.begin() + 4, all.end()), rest) << what;
    expect_same_files(whole, cut, 4, part.world, what);
  }
}

// Saving every step in the background changes nothing: not training, not what is saved.
TEST_F(ResumeTest, AsynchronousSavesEqualSynchronousOnes) {
  const Part part{DistMode::kZero2, 2};
  const std::vector<double> a = train(config(), part, 1, 4, "", folder_ / "async", true);
  const std::vector<double> b = train(config(), part, 1, 4, "", folder_ / "sync", false);
  EXPECT_EQ(a, b);
  for (int64_t step = 1; step <= 4; ++step)
    expect_same_files(folder_ / "async", folder_ / "sync", step, part.world, cat("step ", step));
}

}  // namespace
}  // namespace mgm
