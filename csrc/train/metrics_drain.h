// Carries device scalars (loss, gradient norm) to the host without stopping the GPU: each step's
// values are copied to pinned memory behind an event and handed to the hooks, in order, a few steps
// later.
#pragma once

#include <c10/core/Event.h>

#include <deque>
#include <optional>
#include <vector>

#include "train/hooks/hook.h"
#include "train/train_module.h"

namespace mgm {

class MetricsDrain {
 public:
  explicit MetricsDrain(std::vector<Hook*> hooks) : hooks_(std::move(hooks)) {}

  void push(StepReport report, const StepResult& result);
  // Hands over what has arrived; waits for the oldest when more than `max_pending` are on their
  // way. Throws NonFiniteError naming step and samples.
  void drain(size_t max_pending);

 private:
  struct Pending {
    StepReport report;
    at::Tensor values;  // fp64 [2] on the host: loss, gradient norm
    std::optional<c10::Event> arrived;
  };
  std::vector<Hook*> hooks_;
  std::deque<Pending> pending_;
};

}  // namespace mgm
