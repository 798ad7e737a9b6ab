// TensorBoard scalars in run.dir: loss, learning rate, gradient norm, speed and data wait.
#pragma once

#include "base/fs.h"
#include "formats/tfevents.h"
#include "train/hooks/hook.h"

namespace mgm {

class TensorBoard : public Hook {
 public:
  // What earlier files of the folder hold from `first_step` on is superseded.
  TensorBoard(const fs::path& folder, int64_t first_step);
  void on_step(const StepReport& report) override;
  void on_end() override;

 private:
  TfEventsWriter writer_;
};

}  // namespace mgm
