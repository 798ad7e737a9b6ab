// Model and optimizer as the trainer sees them: one global batch in, one optimizer step out. The
// trainer knows no model, this knows no loop.
#pragma once

#include <functional>
#include <memory>

#include "data/loader.h"
#include "dist/param_store.h"
#include "dist/ranks.h"
#include "dist/shard_engine.h"
#include "model/mini_gemini.h"
#include "optim/adamw.h"
#include "train/expert_exchange.h"
#include "train/step_agreement.h"

namespace mgm {

// Device scalars of a step; reading them waits for the device.
struct StepResult {
  at::Tensor loss;       // fp32: sum of cross entropies / targets of the global batch (or
                         // loss_norm's mean), over all ranks
  at::Tensor grad_norm;  // fp64, before clipping; not finite if any gradient is not
};

class TrainModule {
 public:
  TrainModule(const RunConfig& config, MiniGemini& model, ParamStore& store,
              std::unique_ptr<BlockRunner> runner, Ranks& ranks);

  // Forward and backward of every micro-batch, then one AdamW step at rate `lr`. A gradient that is
  // not finite leaves weights and moments untouched and shows in grad_norm; so does a global batch
  // without a supervised token (all holes), whose loss and grad_norm are 0. Collective.
  StepResult step(const std::vector<Batch>& micro_batches, const StepAgreement& agreed,
                  int64_t step, double lr);

  // Gradients only, for tests: as step() leaves them before the optimizer.
  StepResult forward_backward(const std::vector<Batch>& micro_batches, const StepAgreement& agreed,
                              int64_t step);

  // Called by step() on every rank before the optimizer writes.
  void before_update(std::function<void()> hook) { before_update_ = std::move(hook); }

  ParamStore& store() { return store_; }
  ShardEngine& engine() { return engine_; }
  AdamW& optimizer() { return optimizer_; }
  MiniGemini& model() { return model_; }
  Ranks& ranks() { return ranks_; }
  const RunConfig& config() const { return config_; }

 private:
  at::Tensor sum_losses(const std::vector<at::Tensor>& leaves) const;
  void keep_company(const ForwardContext& ctx);

  const RunConfig& config_;
  MiniGemini& model_;
  ParamStore& store_;
  Ranks& ranks_;
  ShardEngine engine_;
  std::unique_ptr<ExpertExchange> experts_;  // where experts are dealt
  std::unique_ptr<BlockRunner> runner_;
  AdamW optimizer_;
  std::function<void()> before_update_;
};

}  // namespace mgm
