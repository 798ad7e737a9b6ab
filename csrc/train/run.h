// One training run from its config to its last checkpoint.
//
// run.dir afterwards: config.yaml (resolved, with origins), run.json (one entry per start:
// versions, host, argv, resumed step), metrics.jsonl, events.out.tfevents.*, logs/rank_N.log,
// checkpoints/step_N/ and, if no weight of the language model trains, mm_projector.bin, what stage
// 2 starts from.
#pragma once

#include "train/run_state.h"
#include "train/watched.h"

namespace mgm {

// Collective; `meeting`, `run_number` and `end` as in train/watched.h.
// Returns kOk, or kSigint / kSigterm / kSigusr1 after a save. A run that is complete already
// returns at once. Throws the errors of base/error.h; the metrics of every finished step are on
// disk then.
ExitCode run_training(const ResolvedConfig& resolved, const ResumeOptions& resume,
                      const Meeting& meeting, int run_number, const EndProcess& end);

}  // namespace mgm
