// Optimizer state on the host beside the same state on the device: the same weights, and nothing
// touched by a gradient that is not finite.
#include "gpu.h"
#include "grad_check.h"
#include "tiny_model.h"
#include "train/recompute.h"

namespace mgm {
namespace {

const at::Device kCuda(at::kCUDA);

class OffloadGpu : public GpuTest {};

struct Trained {
  explicit Trained(const RunConfig& config, bool poison)
      : tiny(config, at::kBFloat16, kCuda),
        ranks(local_ranks(config.dist)),
        module(tiny.config, tiny.model, *tiny.store, make_recompute_runner({}), ranks) {
    if (poison) tiny.store->assign("model.norm.weight", at::full({24}, std::nan("")));
    const std::vector<Batch> batches = {pack({tiny_sample(tiny.model, 1, 1, 9)}, 0, 0),
                                        pack({tiny_sample(tiny.model, 2, 2, 12)}, 0, 0)};
    for (int64_t step = 1; step <= 4; ++step) {
      norm =
          module.step(batches, agree(ranks, config, batches), step, 1e-3).grad_norm.item<double>();
    }
  }
  TinyModel tiny;
  Ranks ranks;
  TrainModule module;
  double norm = 0;
};

RunConfig offload_config(bool offload) {
  RunConfig config = tiny_config();
  config.optimizer.clip_norm = 0.5;
  config.optimizer.weight_decay = 0.1;
  config.dist.offload = offload ? Offload::kOptimizer : Offload::kNone;
  return config;
}

TEST_F(OffloadGpu, EqualsTheDevice) {
  Trained here(offload_config(false), false), there(offload_config(true), false);
  EXPECT_NEAR(there.norm, here.norm, 1e-2 * here.norm);
  for (const ParamGroup& group : there.tiny.store->groups()) {
    if (group.trained.empty()) continue;
    EXPECT_TRUE(group.master.is_cpu()) << group.name;
    // What the device uses is the master, rounded.
    for (const Segment& segment : group.trained.segments) {
      const auto part = [&](const at::Tensor& flat) {
        return flat.narrow(0, segment.offset, segment.numel).cpu();
      };
      EXPECT_TRUE(at::equal(part(group.trained.shard), part(group.master).to(at::kBFloat16)))
          << segment.param->spec.name;
    }
  }
  // Atomic adds differ from run to run, and bf16 weights of the second step with them.
  for (const Param* param : here.tiny.params) {
    const std::string& name = param->spec.name;
    EXPECT_TRUE(
        near_l2(there.tiny.store->owned_values(name), here.tiny.store->owned_values(name), 2e-3))
        << name;
  }
}

TEST_F(OffloadGpu, NotFiniteTouchesNothing) {
  Trained there(offload_config(true), true);
  EXPECT_FALSE(std::isfinite(there.norm));
  for (size_t i = 0; i < there.tiny.params.size(); ++i) {
    const ParamSpec& spec = there.tiny.params[i]->spec;
    if (spec.name == "model.norm.weight") continue;
    EXPECT_TRUE(at::equal(there.tiny.store->owned_values(spec.name).cpu(),
                          redrawn(spec, i + 1).to(at::kFloat).view(-1)))
        << spec.name;
  }
}

}  // namespace
}  // namespace mgm
