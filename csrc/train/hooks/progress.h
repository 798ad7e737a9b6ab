// The console's progress line: step, ETA, loss, lr, gradient norm, tokens/s, images/s, memory, data
// wait. On a terminal it rewrites one line; elsewhere (a log file, a pipe) it prints plain lines.
#pragma once

#include "base/timer.h"
#include "train/hooks/hook.h"

namespace mgm {

class Progress : public Hook {
 public:
  // `every`: steps per line when not on a terminal.
  Progress(int64_t every, bool terminal);
  void on_step(const StepReport& report) override;
  void on_end() override;

 private:
  int64_t every_;
  bool terminal_;
  bool open_line_ = false;
  Timer since_draw_;
  double seconds_ = 0, wait_ = 0;  // exponential averages per step
  double tokens_ = 0, images_ = 0;
  int64_t seen_ = 0;
};

}  // namespace mgm
