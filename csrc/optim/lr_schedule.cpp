#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>

namespace mgm {

LrSchedule::LrSchedule(const ScheduleConfig& config, double lr, int64_t total_steps)
    : config_(config),
      lr_(lr),
      total_(total_steps),
      warmup_(config.warmup_steps > 0
                  ? config.warmup_steps
                  : static_cast<int64_t>(std::ceil(config.warmup_ratio * double(total_steps)))) {}

double LrSchedule::at(int64_t step) const {
  const double t = double(step - 1);
  if (t < double(warmup_)) return lr_ * t / double(std::max<int64_t>(1, warmup_));
  const double progress =
      std::min(1.0, (t - double(warmup_)) / double(std::max<int64_t>(1, total_ - warmup_)));
  double factor = 1;
  switch (config_.kind) {
    case ScheduleKind::kCosine:
      factor = 0.5 * (1 + std::cos(3.14159265358979323846 * progress));
      break;
    case ScheduleKind::kLinear:
      factor = 1 - progress;
      break;
    case ScheduleKind::kConstant:
      return lr_;
  }
  return lr_ * (config_.min_ratio + (1 - config_.min_ratio) * factor);
}

}  // namespace mgm
