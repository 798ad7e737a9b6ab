// Learning rate over time: linear warm-up, then cosine, linear or constant (HF get_scheduler). The
// rate of the first step of a warm-up is 0, as in HF, where step t uses lambda(t - 1).
#pragma once

#include <cstdint>

#include "config/run_config.h"

namespace mgm {

class LrSchedule {
 public:
  LrSchedule(const ScheduleConfig& config, double lr, int64_t total_steps);
  // Rate of optimizer step `step` (1-based).
  double at(int64_t step) const;
  int64_t warmup_steps() const { return warmup_; }

 private:
  ScheduleConfig config_;
  double lr_;
  int64_t total_, warmup_;
};

}  // namespace mgm
