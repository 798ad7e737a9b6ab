// The loop: batches in, optimizer steps out, reports to hooks, checkpoints by step, by time and on
// a stop signal. Knows no model, no stage and no file format.
#pragma once

#include <functional>

#include "base/error.h"
#include "base/timer.h"
#include "data/loader.h"
#include "dist/watch.h"
#include "optim/lr_schedule.h"
#include "train/hooks/hook.h"
#include "train/profile.h"
#include "train/train_module.h"

namespace mgm {

struct TrainLoop {
  int64_t first_step = 1;  // 1-based; after a resume the step behind the checkpoint
  int64_t total_steps = 0;
  CheckpointConfig checkpoint;
  StepProfiler* profiler = nullptr;                      // may be null
  std::function<void(Phase phase, int64_t step)> enter;  // told what the loop is about to do
  std::function<void(const std::vector<Batch>&)> seen;   // what this rank trains on; may be empty
  // Names of the samples of a step, on all ranks: asked for where a loss is not finite.
  std::function<std::vector<std::string>(int64_t step)> samples;
  // Everything the run needs to go on after `step`; `held` runs since training was held for it.
  std::function<void(int64_t step, const Timer& held)> save;
};

// Whether checkpoints are written between steps, not only at the end or on a signal; and whether
// training goes on meanwhile, from a copy of the state.
bool saves_regularly(const CheckpointConfig& config);
bool saves_beside_training(const CheckpointConfig& config);

// Runs to the end or to a stop signal (base/signal.h, handlers installed by the caller); returns
// kOk, or kSigint, kSigterm or kSigusr1 after a save. Throws NonFiniteError, DataError, ...; what
// earlier steps reported has then reached the hooks.
ExitCode fit(TrainModule& module, Loader& loader, const LrSchedule& schedule,
             std::vector<Hook*> hooks, const TrainLoop& loop);

}  // namespace mgm
