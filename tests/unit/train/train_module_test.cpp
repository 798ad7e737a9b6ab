// One optimizer step: micro-batches add up to the global batch, recomputation changes nothing, a
// gradient that is not finite changes nothing either.
#include "train/train_module.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "grad_check.h"
#include "tiny_model.h"
#include "train/metrics_drain.h"
#include "train/recompute.h"

namespace mgm {
namespace {

struct Trainer {
  explicit Trainer(const RunConfig& config)
      : tiny(config),
        ranks(local_ranks(config.dist)),
        module(tiny.config, tiny.model, *tiny.store,
               make_recompute_runner(tiny.config.train.recompute), ranks) {}
  StepResult forward_backward(const std::vector<Batch>& batches, int64_t step) {
    agreed = agree(ranks, tiny.config, batches);
    return module.forward_backward(batches, agreed, step);
  }
  StepResult step(const std::vector<Batch>& batches, int64_t step, double lr) {
    agreed = agree(ranks, tiny.config, batches);
    return module.step(batches, agreed, step, lr);
  }
  TinyModel tiny;
  Ranks ranks;
  TrainModule module;
  StepAgreement agreed;  // of the last call
};

class TrainModuleTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { install_recompute_engine(); }
};

// Four samples of different kinds and lengths, cut into micro-batches of `size`.
std::vector<Batch> micro_batches(const MiniGemini& model, size_t size) {
  std::vector<Sample> samples;
  for (const int64_t pictures : {1, 0, 2, 1}) {
    const auto index = static_cast<int64_t>(samples.size());
    samples.push_back(tiny_sample(model, index, pictures, 6 + 3 * index));
  }
  std::vector<Batch> out;
  for (size_t i = 0; i < samples.size(); i += size) {
    out.push_back(
        pack({samples.begin() + ptrdiff_t(i), samples.begin() + ptrdiff_t(i + size)}, 0, 0));
  }
  return out;
}

// Drop path is on: its draws follow the picture, not the micro-batch.
TEST_F(TrainModuleTest, AccumulationEqualsOneBatch) {
  Trainer whole(tiny_config());
  const StepResult expected = whole.forward_backward(micro_batches(whole.tiny.model, 4), 3);
  EXPECT_EQ(whole.agreed.targets, 20);
  for (const size_t size : {1u, 2u}) {
    Trainer cut(tiny_config());
    const StepResult result = cut.forward_backward(micro_batches(cut.tiny.model, size), 3);
    EXPECT_NEAR(result.loss.item<double>(), expected.loss.item<double>(), 2e-6);
    EXPECT_EQ(cut.agreed.targets, 20);
    for (const Param* param : whole.tiny.params) {
      const std::string& name = param->spec.name;
      const at::Tensor want = whole.tiny.grad(name);
      if (want.norm().item<double>() < 1e-6) continue;  // mathematically zero
      EXPECT_TRUE(near_l2(cut.tiny.grad(name), want, 5e-5))
          << name << " in micro-batches of " << size;
    }
  }
}

TEST_F(TrainModuleTest, MicroBatchNormIsTheMeanOfMeans) {
  RunConfig config = tiny_config();
  config.train.loss_norm = LossNorm::kMicroBatch;
  config.model.convnext.drop_path = 0;
  Trainer trainer(config);
  std::vector<Batch> batches = {
      pack({tiny_sample(trainer.tiny.model, 1, 1, 6)}, 0, 0),
      pack({tiny_sample(trainer.tiny.model, 2, 0, 9), tiny_sample(trainer.tiny.model, 3, 0, 9)}, 0,
           0)};
  DirectRunner direct;
  const ForwardContext plain{direct};
  double expected = 0;
  for (const Batch& batch : batches) {
    expected +=
        trainer.tiny.model.loss_sum(batch, plain).item<double>() / double(batch.num_targets());
  }
  const StepResult result = trainer.forward_backward(batches, 1);
  EXPECT_NEAR(result.loss.item<double>(), expected / 2, 1e-6);
}

TEST_F(TrainModuleTest, RecomputationChangesNoBit) {
  Trainer kept(tiny_config());
  kept.forward_backward(micro_batches(kept.tiny.model, 2), 5);
  for (const RecomputePolicy policy : {RecomputePolicy::kFull, RecomputePolicy::kSelective}) {
    RunConfig config = tiny_config();
    config.train.recompute = {{"model.layers.*", policy}, {"model.vision_tower*", policy}};
    Trainer again(config);
    again.forward_backward(micro_batches(again.tiny.model, 2), 5);
    for (const Param* param : kept.tiny.params) {
      const std::string& name = param->spec.name;
      EXPECT_TRUE(at::equal(again.tiny.grad(name), kept.tiny.grad(name))) << name;
    }
  }
}

TEST_F(TrainModuleTest, TextAloneGivesTheVisionSideZeroGradientsAndDecayingMoments) {
  Trainer trainer(tiny_config());
  trainer.step(micro_batches(trainer.tiny.model, 4), 1, 1e-3);
  const auto moment = [&](const std::string& name) {
    for (const AdamW::State& state : trainer.module.optimizer().states()) {
      for (const Segment& s : state.group->trained.segments) {
        if (s.param->spec.name == name) return state.exp_avg.narrow(0, s.offset, s.numel).clone();
      }
    }
    throw InternalError("no moments for ", name);
  };
  const std::string name = "model.vlm_uni_val_projector.1.weight";
  const at::Tensor before = moment(name);
  ASSERT_GT(before.norm().item<double>(), 0);
  trainer.step({pack({tiny_sample(trainer.tiny.model, 9, 0, 8)}, 0, 0)}, 2, 1e-3);
  EXPECT_EQ(trainer.tiny.grad(name).norm().item<double>(), 0);
  EXPECT_TRUE(near_l2(moment(name), before * 0.9, 1e-6));
}

TEST_F(TrainModuleTest, OnlyHolesAreAStepWithoutGradients) {
  Trainer trainer(tiny_config());
  const StepResult result = trainer.step({pack({}, 4, 0)}, 1, 1e-3);
  EXPECT_EQ(result.loss.item<float>(), 0);
  EXPECT_EQ(trainer.agreed.targets, 0);
  EXPECT_EQ(result.grad_norm.item<double>(), 0);
}

TEST_F(TrainModuleTest, NotFiniteLeavesEverythingAndNamesTheSamples) {
  Trainer trainer(tiny_config());
  const std::string poisoned = "model.norm.weight";
  trainer.tiny.store->assign(poisoned, at::full({24}, std::nan("")));
  const at::Tensor before = trainer.tiny.store->value("lm_head.weight").clone();
  const StepResult result = trainer.step(micro_batches(trainer.tiny.model, 4), 7, 1e-3);
  EXPECT_TRUE(at::equal(trainer.tiny.store->value("lm_head.weight"), before));
  for (const AdamW::State& state : trainer.module.optimizer().states()) {
    EXPECT_EQ(state.exp_avg.abs().sum().item<double>(), 0) << state.group->name;
  }
  MetricsDrain drain({}, OnNonFinite::kStop, [](int64_t step) {
    return std::vector<std::string>{cat("first of ", step), "second"};
  });
  StepReport report;
  report.step = 7;
  report.num_targets = 5;
  drain.push(report, result);
  try {
    drain.drain(0);
    FAIL() << "a NaN went by";
  } catch (const NonFiniteError& e) {
    const std::string message = e.what();
    EXPECT_NE(message.find("step 7"), message.npos) << message;
    EXPECT_NE(message.find("Its 2 samples: first of 7, second."), message.npos) << message;
  }
}

TEST_F(TrainModuleTest, NotFiniteCanBeSkippedButNotTenTimesInARow) {
  MetricsDrain drain({}, OnNonFinite::kSkip, [](int64_t) { return std::vector<std::string>(); });
  const auto step = [&](int64_t number, double loss) {
    StepReport report;
    report.step = number;
    report.num_targets = 5;
    drain.push(report, {at::tensor(loss), at::tensor(1.0, at::kDouble)});
    drain.drain(0);
  };
  for (int64_t i = 1; i <= 9; ++i) step(i, NAN);
  step(10, 2.5);  // a good one between
  for (int64_t i = 11; i <= 19; ++i) step(i, INFINITY);
  EXPECT_EQ(drain.skipped(), 18);
  EXPECT_THROW(step(20, NAN), NonFiniteError);
}

// Master weights are fp32 under bf16: updates far below a bf16 step add up.
TEST_F(TrainModuleTest, Bf16RunsKeepFp32Masters) {
  RunConfig config = tiny_config();
  config.model.convnext.drop_path = 0;
  TinyModel tiny(config, at::kBFloat16);
  Ranks ranks = local_ranks(config.dist);
  TrainModule module(tiny.config, tiny.model, *tiny.store, make_recompute_runner({}), ranks);
  const at::Tensor start = tiny.store->value("lm_head.weight").clone();
  const std::vector<Batch> batches = micro_batches(tiny.model, 4);
  const StepAgreement agreed = agree(ranks, tiny.config, batches);
  for (int64_t step = 1; step <= 3; ++step) module.step(batches, agreed, step, 1e-5);
  const at::Tensor moved = tiny.store->value("lm_head.weight") - start;
  EXPECT_EQ(moved.scalar_type(), at::kFloat);
  EXPECT_GT(moved.abs().max().item<double>(), 1e-5);
  EXPECT_LT(moved.abs().max().item<double>(), 1e-4);
  for (const Param* param : tiny.params) {
    if (param->spec.name != "lm_head.weight") continue;
    EXPECT_TRUE(
        at::equal(param->value.detach(), tiny.store->value("lm_head.weight").to(at::kBFloat16)));
  }
}

}  // namespace
}  // namespace mgm
