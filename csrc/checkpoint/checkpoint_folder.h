// run.dir/checkpoints: which checkpoints are there, and the steps by which one appears and goes. A
// folder named step_N is whole, or has been tampered with; what a crash leaves has another name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fs.h"

namespace mgm {

fs::path train_checkpoint_dir(const fs::path& run_dir, int64_t step);
fs::path temporary_checkpoint_dir(const fs::path& run_dir, int64_t step);  // step_N.tmp
// "step_12" -> 12; anything else (step_12.tmp, step_012) -> -1.
int64_t checkpoint_step(const std::string& folder_name);

// Steps with a published checkpoint, ascending.
std::vector<int64_t> list_train_checkpoints(const fs::path& run_dir);

// A checkpoint folder itself, or the newest one of a run folder. Throws CheckpointError when `path`
// is neither.
fs::path find_train_checkpoint(const fs::path& path);

// Makes step_N.tmp, empty. Removes what a crash left: step_N.tmp is a part of a checkpoint.
// step_N.old is a whole one, which goes back where no step_N is beside it. Throws Error(kInternal)
// naming the path.
void begin_checkpoint(const fs::path& run_dir, int64_t step);

// step_N.tmp becomes step_N by one rename; what it replaces is then removed. Throws
// Error(kInternal); an existing step_N is then as it was.
void publish_checkpoint(const fs::path& run_dir, int64_t step);

// What lies behind `step` belongs to a future that the run is about to leave: moves it to
// checkpoints/set_aside, newest first, behind a copy of `metrics` (the run's metrics file, uncut),
// so that a crash at any moment leaves a run that can go on from its newest checkpoint. What was
// set aside before goes, with a warning; an unfinished move of the same future is continued.
// Returns what was moved and how to take it back, "" for nothing. Throws Error(kInternal), fs
// errors.
std::string set_aside_checkpoints(const fs::path& run_dir, int64_t step, const fs::path& metrics);

// Steps of the checkpoints that lie there, ascending; and where that is.
std::vector<int64_t> list_set_aside(const fs::path& run_dir);
fs::path set_aside_dir(const fs::path& run_dir);

bool is_set_aside(const fs::path& checkpoint);  // lies where set_aside_checkpoints puts them

// Leaves the newest `keep` (>= 1). Checkpoints of steps behind `written` are of a future that the
// run has left by going back; they are removed too, with a warning. What cannot be removed is a
// warning.
void prune_checkpoints(const fs::path& run_dir, int64_t written, int64_t keep);

}  // namespace mgm
