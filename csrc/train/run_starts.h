// run.json: one entry per start of a run, and what a start that a launcher repeats goes on from.
#pragma once

#include "dist/ranks.h"
#include "train/run_state.h"

namespace mgm {

struct RunStart {
  std::string resume;  // what --resume asked for
  std::string from;    // the checkpoint folder gone on from; "": the beginning
  int64_t from_step = 0;
  int64_t total_steps = 0;
};

// Adds an entry, so that a resumed run still says where it began. Called when the folder holds
// nothing behind from_step any more: what is there later, this start has written. Throws
// Error(kInternal).
void record_start(const fs::path& run_dir, const RunIdentity& identity, const RunStart& start,
                  const Ranks& ranks);

// A launcher repeats its command line as it is. Where that says --resume DIR, or never, and the
// last start was an earlier attempt of the same launch (`mgm launch --restarts`, torchrun, a
// requeued SLURM job), DIR would throw away what that attempt has trained: the newest checkpoint
// it wrote counts, or what it went on from itself if it wrote none.
ResumeOptions after_restart(const fs::path& run_dir, const ResumeOptions& asked,
                            const LaunchEnv& env);

// What each stage of a file begins with: a folder is of the stage whose run.dir holds it, else of
// the one its config.yaml says or fits, and the other stages go on from their newest. Throws
// CheckpointError where it is of none.
std::vector<ResumeOptions> resume_of_stages(const std::vector<ResolvedConfig>& stages,
                                            const ResumeOptions& asked);

}  // namespace mgm
