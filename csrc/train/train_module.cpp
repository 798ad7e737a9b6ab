#include "train/train_module.h"

#include <ATen/ATen.h>

namespace mgm {

TrainModule::TrainModule(const RunConfig& config, MiniGemini& model, ParamStore& store,
                         std::unique_ptr<BlockRunner> runner, ProcessGroup& ranks)
    : config_(config),
      model_(model),
      store_(store),
      runner_(std::move(runner)),
      ranks_(ranks),
      optimizer_(store, config.optimizer) {}

StepResult TrainModule::forward_backward(const std::vector<Batch>& micro_batches, int64_t step) {
  store_.zero_grad();
  int64_t targets = 0, with_targets = 0;
  for (const Batch& batch : micro_batches) {
    targets += batch.num_targets();
    with_targets += batch.num_targets() > 0 ? 1 : 0;
  }
  at::Tensor counts = at::tensor({targets, with_targets}, at::kLong);
  ranks_.all_reduce_sum(counts);
  const auto global_targets = counts[0].item<int64_t>();
  const auto global_micro = counts[1].item<int64_t>();

  const ForwardContext ctx{*runner_, /*training=*/true, static_cast<uint64_t>(config_.train.seed),
                           step};
  at::Tensor loss = at::zeros({}, at::TensorOptions(store_.device()).dtype(at::kFloat));
  for (const Batch& host : micro_batches) {
    if (host.num_targets() == 0) continue;  // all holes: nothing to learn, nothing to run
    const Batch batch = host.to(store_.device());
    const bool by_tokens = config_.train.loss_norm == LossNorm::kGlobalTokens;
    const double divisor =
        by_tokens ? double(global_targets) : double(host.num_targets()) * double(global_micro);
    const at::Tensor part = model_.loss_sum(batch, ctx) / divisor;
    if (part.requires_grad()) part.backward();
    loss.add_(part.detach());
  }
  ranks_.all_reduce_sum(loss);
  return {loss, {}, global_targets};
}

StepResult TrainModule::step(const std::vector<Batch>& micro_batches, int64_t step, double lr) {
  StepResult result = forward_backward(micro_batches, step);
  result.grad_norm = optimizer_.step(lr, step);
  return result;
}

}  // namespace mgm
