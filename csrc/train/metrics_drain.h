// Carries device scalars (loss, gradient norm) to the host without stopping the GPU: each step's
// values are copied to pinned memory behind an event and handed to the hooks, in order, a few steps
// later.
#pragma once

#include <c10/core/Event.h>

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/hooks/hook.h"
#include "train/train_module.h"

namespace mgm {

class MetricsDrain {
 public:
  // Names of a step's samples, on all ranks.
  using SampleNames = std::function<std::vector<std::string>(int64_t step)>;

  MetricsDrain(std::vector<Hook*> hooks, OnNonFinite on_nonfinite, SampleNames samples)
      : hooks_(std::move(hooks)), on_nonfinite_(on_nonfinite), samples_(std::move(samples)) {}

  void push(StepReport report, const StepResult& result);
  // Hands over what has arrived; waits for the oldest when more than `max_pending` are on their
  // way. A loss or gradient that is not finite has changed no weight; it throws NonFiniteError
  // naming step and samples or, with on_nonfinite: skip, is reported and counted. Ten such steps in
  // a row are not a matter of samples: they throw too.
  void drain(size_t max_pending);
  int64_t skipped() const { return skipped_; }
  // Steps without a supervised token: reported with a loss that is no number, and counted.
  int64_t empty() const { return empty_; }

 private:
  struct Pending {
    StepReport report;
    at::Tensor values;  // fp64 [2] on the host: loss, gradient norm
    std::optional<c10::Event> arrived;
  };
  void not_finite(StepReport& report);
  void nothing_to_learn(StepReport& report);

  std::vector<Hook*> hooks_;
  OnNonFinite on_nonfinite_;
  SampleNames samples_;
  int64_t skipped_ = 0, in_a_row_ = 0, empty_ = 0;
  std::deque<Pending> pending_;
};

}  // namespace mgm
