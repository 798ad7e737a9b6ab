#include "train/trainer.h"

#include "base/log.h"
#include "base/signal.h"
#include "base/timer.h"
#include "train/device.h"
#include "train/metrics_drain.h"
#include "train/save_clock.h"

namespace mgm {
namespace {

constexpr size_t kPendingSteps = 4;  // how far the host may run ahead of the device's numbers

StepReport describe(const StepAgreement& agreed, int64_t step, int64_t total_steps) {
  StepReport report;
  report.step = step;
  report.total_steps = total_steps;
  report.num_targets = agreed.targets;
  report.tokens = agreed.tokens;
  report.images = agreed.images;
  report.samples = agreed.samples;
  report.text_only = agreed.text_only;
  report.holes = agreed.holes;
  return report;
}

}  // namespace

bool saves_regularly(const CheckpointConfig& config) {
  return config.every_steps > 0 || config.every_minutes > 0;
}

bool saves_beside_training(const CheckpointConfig& config) {
  return config.asynchronous && saves_regularly(config);
}

ExitCode fit(TrainModule& module, Loader& loader, const LrSchedule& schedule,
             std::vector<Hook*> hooks, const TrainLoop& loop) {
  MetricsDrain drain(hooks, module.config().train.on_nonfinite, loop.samples);
  SaveClock clock(loop.checkpoint);
  Timer since_step;
  const auto save = [&](int64_t step) {
    drain.drain(0);
    const Timer held;
    for (Hook* hook : hooks) hook->on_checkpoint(step);
    loop.enter(Phase::kSave, step);
    loop.save(step, held);
    clock.saved();
  };

  ExitCode outcome = ExitCode::kOk;
  for (int64_t step = loop.first_step; step <= loop.total_steps; ++step) {
    loop.enter(Phase::kStep, step);
    if (loop.profiler) loop.profiler->before_step(step);
    const Timer wait;
    const std::optional<StepBatches> batches = loader.next();
    MGM_CHECK(batches.has_value(), "the loader ended before step ", step, " of ", loop.total_steps);
    const double waited = wait.seconds();
    // One rank's clock and any rank's signal decide for all of them.
    const bool first_rank = module.ranks().is_first();
    const StepAgreement agreed = agree(module.ranks(), module.config(), batches->micro,
                                       {stop_signal(), first_rank && clock.time_due()});
    StepReport report = describe(agreed, step, loop.total_steps);
    report.data_wait_s = waited;
    report.lr = schedule.at(step);
    if (loop.seen) loop.seen(batches->micro);

    const StepResult result = module.step(batches->micro, agreed, step, report.lr);
    if (loop.profiler) loop.profiler->after_step(step);
    report.memory_bytes = peak_memory_bytes(module.store().device());
    report.step_s = since_step.seconds();
    since_step.reset();
    drain.push(std::move(report), result);
    drain.drain(kPendingSteps);

    const int signal = agreed.votes.stop_signal;
    const bool last = step == loop.total_steps;
    const bool due = clock.step_due(step) || agreed.votes.save;
    if (signal != 0 || (last && loop.checkpoint.at_end) || (!last && due)) save(step);
    if (signal != 0) {
      outcome = static_cast<ExitCode>(128 + signal);
      break;
    }
  }
  drain.drain(0);
  if (drain.skipped() > 0) {
    log::warn(cat(drain.skipped(), " steps were not finite and changed no weight"));
  }
  if (drain.empty() > 0) {
    log::warn(cat(drain.empty(), drain.empty() == 1 ? " step" : " steps",
                  " had no supervised token and changed no weight"));
  }
  for (Hook* hook : hooks) hook->on_end();
  return outcome;
}

}  // namespace mgm
