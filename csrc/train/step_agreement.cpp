#include "train/step_agreement.h"

#include <ATen/ATen.h>

#include <csignal>

#include "base/error.h"

namespace mgm {

int64_t leaf_micro_batches(const RunConfig& config) {
  if (config.dist.reduction != Reduction::kStrict) return 1;
  return config.train.global_batch / config.dist.virtual_shards / config.train.micro_batch;
}

StepAgreement agree(Ranks& ranks, const RunConfig& config, const std::vector<Batch>& mine,
                    const StepVotes& votes) {
  StepAgreement out;
  std::vector<int64_t> counts;
  for (const Batch& batch : mine) {
    const bool runs = batch.num_targets() > 0;
    counts.push_back(batch.num_targets());
    counts.push_back(runs ? batch.num_images() : 0);
    counts.push_back(runs ? 1 : 0);
    out.tokens += batch.seq.total();
    out.images += batch.num_images();
    out.samples += static_cast<int64_t>(batch.samples.size());
    out.text_only += batch.text_only;
    out.holes += batch.holes;
  }
  counts.insert(counts.end(), {out.tokens, out.images, out.samples, out.text_only, out.holes});
  constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
  for (const int signal : kSignals) counts.push_back(votes.stop_signal == signal ? 1 : 0);
  counts.push_back(votes.save ? 1 : 0);

  const at::Tensor sum = at::tensor(counts, at::kLong);
  ranks.control->all_reduce_sum(sum, "counts and votes of the step").wait();
  const int64_t* next = sum.const_data_ptr<int64_t>();

  const auto n = static_cast<int64_t>(mine.size());
  const int64_t leaf = config.dist.reduction == Reduction::kStrict ? leaf_micro_batches(config) : n;
  MGM_CHECK(leaf > 0 && n % leaf == 0, n, " micro-batches do not make leaves of ", leaf);
  for (int64_t i = 0; i < n; ++i, next += 3) {
    out.targets += next[0];
    out.with_targets += next[2];
    out.micro.push_back({next[2] > 0, next[1] > 0, (i + 1) % leaf == 0});
  }
  for (int64_t* total : {&out.tokens, &out.images, &out.samples, &out.text_only, &out.holes}) {
    *total = *next++;
  }
  for (const int signal : kSignals) {
    if (*next++ > 0 && out.votes.stop_signal == 0) out.votes.stop_signal = signal;
  }
  out.votes.save = *next > 0;
  return out;
}

}  // namespace mgm
