// When a run saves between its steps: every so many of them, and every so many minutes since the
// last save ended.
#pragma once

#include <functional>
#include <utility>

#include "base/timer.h"
#include "config/run_config.h"

namespace mgm {

class SaveClock {
 public:
  // `now`: seconds of a clock that only goes forward.
  explicit SaveClock(
      const CheckpointConfig& config,
      std::function<double()> now = [timer = Timer()] { return timer.seconds(); })
      : config_(config), now_(std::move(now)), last_(now_()) {}

  bool step_due(int64_t step) const {
    return config_.every_steps > 0 && step % config_.every_steps == 0;
  }
  bool time_due() const {
    return config_.every_minutes > 0 && now_() - last_ >= 60 * config_.every_minutes;
  }
  void saved() { last_ = now_(); }

 private:
  CheckpointConfig config_;
  std::function<double()> now_;
  double last_;
};

}  // namespace mgm
