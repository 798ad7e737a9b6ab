#include "train/train_module.h"

#include <ATen/ATen.h>

#include "base/error.h"
#include "dist/strict_sum.h"
#include "train/sharded_runner.h"

namespace mgm {

TrainModule::TrainModule(const RunConfig& config, MiniGemini& model, ParamStore& store,
                         std::unique_ptr<BlockRunner> runner, Ranks& ranks)
    : config_(config),
      model_(model),
      store_(store),
      ranks_(ranks),
      engine_(store, ranks, model.group_uses()),
      runner_(make_sharded_runner(engine_, std::move(runner))),
      optimizer_(store, ranks, config.optimizer) {
  if (ranks.topology.expert_ranks == 1) return;
  experts_ =
      std::make_unique<ExpertExchange>(store, engine_, ranks, model.config().llm.num_experts);
}

// The step's loss from the loss of each of this rank's leaves.
at::Tensor TrainModule::sum_losses(const std::vector<at::Tensor>& leaves) const {
  at::Tensor mine = at::stack(leaves);
  if (!store_.settings().strict) {
    at::Tensor sum = mine.sum();
    ranks_.world->all_reduce_sum(sum, "loss").wait();
    return sum;
  }
  const at::Tensor all = at::empty({ranks_.size() * mine.size(0)}, mine.options());
  ranks_.world->all_gather(all, mine, "loss of every leaf").wait();
  // Leaf number round * world + rank, as gradients are summed.
  return fixed_order_sum(all.view({ranks_.size(), -1}).t().reshape(-1));
}

// A micro-batch in which other ranks have something to learn and this one has not: rows of theirs
// come to its experts all the same. It computes a token whose loss counts nothing, and so walks
// with them.
void TrainModule::keep_company(const ForwardContext& ctx) {
  Batch batch;
  batch.input_ids = at::zeros({1}, at::kLong);
  batch.positions = at::zeros({1}, at::kLong);
  batch.seq.offsets = {0, 1};
  batch.seq.cu_seqlens = at::tensor({0, 1}, at::kInt);
  batch.seq.max_length = 1;
  batch.seq.keys = {0};
  batch.image_rows = at::empty({0}, at::kLong);
  batch.target_rows = at::zeros({1}, at::kLong);
  batch.targets = at::zeros({1}, at::kLong);
  const at::Tensor nothing = model_.loss_sum(batch.to(store_.device()), ctx) * 0.0;
  if (nothing.requires_grad()) nothing.backward();
}

StepResult TrainModule::forward_backward(const std::vector<Batch>& micro_batches,
                                         const StepAgreement& agreed, int64_t step) {
  ForwardContext ctx{*runner_, /*training=*/true, static_cast<uint64_t>(config_.train.seed), step};
  ctx.experts = experts_.get();
  const at::TensorOptions scalar = at::TensorOptions(store_.device()).dtype(at::kFloat);
  std::vector<at::Tensor> leaves;
  at::Tensor loss = at::zeros({}, scalar);
  engine_.begin_step();
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const Batch& host = micro_batches[i];
    engine_.begin_micro_batch(agreed.micro[i]);
    if (host.num_targets() > 0) {  // else all holes: nothing to learn, nothing to run
      const Batch batch = host.to(store_.device());
      const bool by_tokens = config_.train.loss_norm == LossNorm::kGlobalTokens;
      const double divisor = by_tokens ? double(agreed.targets)
                                       : double(host.num_targets()) * double(agreed.with_targets);
      const at::Tensor part = model_.loss_sum(batch, ctx) / divisor;
      if (part.requires_grad()) part.backward();
      loss.add_(part.detach());
    } else if (experts_ && agreed.micro[i].runs) {
      keep_company(ctx);
    }
    engine_.end_micro_batch();
    if (agreed.micro[i].last) {
      leaves.push_back(loss);
      loss = at::zeros({}, scalar);
    }
  }
  engine_.end_step();
  return {sum_losses(leaves), {}};
}

StepResult TrainModule::step(const std::vector<Batch>& micro_batches, const StepAgreement& agreed,
                             int64_t step, double lr) {
  StepResult result = forward_backward(micro_batches, agreed, step);
  if (before_update_) before_update_();
  if (agreed.targets == 0) {  // nothing was learnt: moments would fade and weights decay
    result.grad_norm = at::zeros({}, at::TensorOptions(store_.device()).dtype(at::kDouble));
    return result;
  }
  result.grad_norm = optimizer_.step(lr, step);
  engine_.parameters_changed();
  return result;
}

}  // namespace mgm
