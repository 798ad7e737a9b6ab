// Model and optimizer as the trainer sees them: one global batch in, one optimizer step out. The
// trainer knows no model, this knows no loop.
#pragma once

#include <memory>

#include "data/loader.h"
#include "dist/param_store.h"
#include "dist/ranks.h"
#include "dist/shard_engine.h"
#include "model/mini_gemini.h"
#include "optim/adamw.h"

namespace mgm {

// Device scalars of a step; reading them waits for the device.
struct StepResult {
  at::Tensor loss;       // fp32: sum of cross entropies / targets of the global batch (or
                         // loss_norm's mean), over all ranks
  at::Tensor grad_norm;  // fp64, before clipping; not finite if any gradient is not
  int64_t num_targets = 0;
};

// Micro-batches that run one after another on one rank and leave it as one gradient: a leaf of a
// strict sum; else 1.
int64_t leaf_micro_batches(const RunConfig& config);

class TrainModule {
 public:
  TrainModule(const RunConfig& config, MiniGemini& model, ParamStore& store,
              std::unique_ptr<BlockRunner> runner, Ranks& ranks);

  // Forward and backward of every micro-batch, then one AdamW step at rate `lr`. A gradient that is
  // not finite leaves weights and moments untouched and shows in grad_norm.
  StepResult step(const std::vector<Batch>& micro_batches, int64_t step, double lr);

  // Gradients only, for tests: as step() leaves them before the optimizer.
  StepResult forward_backward(const std::vector<Batch>& micro_batches, int64_t step);

  // What all ranks do with each micro-batch of a step, and the supervised tokens of the step.
  struct Agreement {
    std::vector<MicroBatch> micro;
    int64_t targets = 0;       // of the global batch
    int64_t with_targets = 0;  // micro-batches of the global batch that have any
  };

  ParamStore& store() { return store_; }
  ShardEngine& engine() { return engine_; }
  AdamW& optimizer() { return optimizer_; }
  MiniGemini& model() { return model_; }

 private:
  Agreement agree(const std::vector<Batch>& micro_batches) const;
  at::Tensor sum_losses(const std::vector<at::Tensor>& leaves) const;

  const RunConfig& config_;
  MiniGemini& model_;
  ParamStore& store_;
  Ranks& ranks_;
  ShardEngine engine_;
  std::unique_ptr<BlockRunner> runner_;
  AdamW optimizer_;
};

}  // namespace mgm
