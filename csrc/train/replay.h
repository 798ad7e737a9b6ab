// `mgm replay`: runs one step of a run again, from the newest checkpoint before it, with the same
// data, randomness and learning rates, and compares every step on the way with metrics.jsonl.
#pragma once

#include "train/watched.h"

namespace mgm {

struct ReplayRequest {
  int64_t step = 0;     // 1-based, as in metrics.jsonl
  bool groups = false;  // report every group of the step, not only where numbers break
};

// `resolved` is the run's own config, run.dir the run's folder; nothing in it is changed. Reports
// on the log of rank 0: what differs from metrics.jsonl, the samples of the step by rank and
// micro-batch, and the first group whose result, gradient or weight's gradient is not finite.
// Collective. Returns kOk; kNonFinite if the step's loss or gradient norm is not finite; kInternal
// if a number differs from metrics.jsonl. Throws ConfigError if there is no such step,
// CheckpointError, DataError and DistError as training does.
ExitCode replay_step(const ResolvedConfig& resolved, const ReplayRequest& request,
                     const Meeting& meeting, const EndProcess& end);

}  // namespace mgm
