#include "train/metrics_drain.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cmath>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"

namespace mgm {

void MetricsDrain::push(StepReport report, const StepResult& result) {
  Pending pending;
  pending.report = std::move(report);
  const at::Tensor values =
      at::stack({result.loss.to(at::kDouble), result.grad_norm.to(at::kDouble)});
  if (values.is_cuda()) {
    pending.values = at::empty({2}, at::TensorOptions(at::kDouble).pinned_memory(true));
    pending.values.copy_(values, /*non_blocking=*/true);
    pending.arrived.emplace(values.device().type());
    const c10::impl::VirtualGuardImpl guard(values.device().type());
    pending.arrived->record(guard.getStream(values.device()));
  } else {
    pending.values = values;
  }
  pending_.push_back(std::move(pending));
}

void MetricsDrain::drain(size_t max_pending) {
  while (!pending_.empty()) {
    Pending& oldest = pending_.front();
    if (oldest.arrived && !oldest.arrived->query()) {
      if (pending_.size() <= max_pending) return;
      oldest.arrived->synchronize();
    }
    StepReport report = std::move(oldest.report);
    report.loss = oldest.values[0].item<double>();
    report.grad_norm = oldest.values[1].item<double>();
    pending_.pop_front();
    report.updated =
        report.num_targets > 0 && std::isfinite(report.loss) && std::isfinite(report.grad_norm);
    if (report.num_targets == 0) {
      nothing_to_learn(report);
    } else if (report.updated) {
      in_a_row_ = 0;
    } else {
      not_finite(report);
    }
    for (Hook* hook : hooks_) hook->on_step(report);
  }
}

// The mean over no token is no number.
void MetricsDrain::nothing_to_learn(StepReport& report) {
  report.loss = std::nan("");
  ++empty_;
  log::warn(cat("step ", report.step, ": no supervised token in its ", report.samples,
                " samples and ", report.holes, " holes: no weight was updated"));
}

void MetricsDrain::not_finite(StepReport& report) {
  constexpr size_t kShown = 64;
  constexpr int64_t kMostInARow = 10;
  std::vector<std::string> names = samples_(report.step);
  const size_t all = names.size();
  names.resize(std::min(kShown, all));
  const std::string what = cat(
      "step ", report.step, ": loss ", report.loss, ", gradient norm ", report.grad_norm, " (lr ",
      report.lr, ", ", report.num_targets, " targets). Its ", all, " samples: ", join(names, ", "),
      all > kShown ? ", ..." : "", ". The weights were not updated by this step");
  ++skipped_;
  ++in_a_row_;
  if (on_nonfinite_ == OnNonFinite::kSkip && in_a_row_ < kMostInARow) {
    log::warn(cat(what, "; going on (train.on_nonfinite: skip)"));
    return;
  }
  throw NonFiniteError(what, in_a_row_ > 1 ? cat(", nor by the ", in_a_row_ - 1, " before it") : "",
                       "; continue from the last checkpoint with a lower lr or without these "
                       "samples.");
}

}  // namespace mgm
