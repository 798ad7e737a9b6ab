#include "train/hooks/progress.h"

#include <cstdio>

#include "base/log.h"
#include "base/strings.h"

namespace mgm {

Progress::Progress(int64_t every, bool terminal) : every_(every), terminal_(terminal) {}

void Progress::on_step(const StepReport& r) {
  // Averages over about 20 steps; the first step (warm-up of caches and plans) is not typical and
  // fades.
  const double keep = seen_ < 2 ? 0.0 : seen_ < 20 ? 1.0 - 1.0 / double(seen_) : 0.95;
  seconds_ = keep * seconds_ + (1 - keep) * r.step_s;
  wait_ = keep * wait_ + (1 - keep) * r.data_wait_s;
  tokens_ = keep * tokens_ + (1 - keep) * double(r.tokens);
  images_ = keep * images_ + (1 - keep) * double(r.images);
  ++seen_;

  const bool last = r.step == r.total_steps;
  if (terminal_ ? (!last && since_draw_.seconds() < 0.2) : (!last && r.step % every_ != 0)) return;
  since_draw_.reset();
  const double rate = seconds_ > 0 ? 1 / seconds_ : 0;
  const std::string line = strf(
      "step %lld/%lld  eta %s  loss %s  lr %.3g  |g| %.3g  %.0f tok/s  %.1f img/s  mem %s  wait "
      "%.0f%%",
      static_cast<long long>(r.step), static_cast<long long>(r.total_steps),
      human_seconds(double(r.total_steps - r.step) * seconds_).c_str(),
      r.num_targets > 0 ? strf("%.4f", r.loss).c_str() : "-", r.lr, r.grad_norm, tokens_ * rate,
      images_ * rate, human_bytes(double(r.memory_bytes)).c_str(),
      seconds_ > 0 ? 100 * wait_ / seconds_ : 0.0);
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
    open_line_ = true;
  } else {
    log::info(line);
  }
}

void Progress::on_end() {
  if (open_line_) std::fprintf(stderr, "\n");
  open_line_ = false;
}

}  // namespace mgm
