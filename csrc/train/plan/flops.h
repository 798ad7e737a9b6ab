// Floating-point operations of a micro-batch, use by use. A multiply-add counts as two;
// element-wise work is left out.
#pragma once

#include "train/plan/planned_model.h"

namespace mgm {

struct UseFlops {
  double forward = 0, backward = 0, recompute = 0;

  double all() const { return forward + backward + recompute; }
};

// Gradients of inputs cost one forward, gradients of weights another in proportion to what trains.
// Segments are taken as equally long.
std::vector<UseFlops> use_flops(const PlannedModel& model, const BatchShape& shape);

}  // namespace mgm
