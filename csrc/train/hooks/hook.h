// What may be attached to a training run. Hooks see steps in order, each exactly once, after its
// loss is known; they never change numbers.
#pragma once

#include "train/step_report.h"

namespace mgm {

class Hook {
 public:
  virtual ~Hook() = default;
  virtual void on_step(const StepReport&) {}
  // Everything up to and including this step must be on disk when this returns.
  virtual void on_checkpoint(int64_t /*step*/) {}
  virtual void on_end() {}
};

}  // namespace mgm
