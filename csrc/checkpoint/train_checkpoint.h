// Training checkpoints: run.dir/checkpoints/step_N/. Written to step_N.tmp, every file fsynced,
// then a manifest with sizes and hashes, then one rename: a folder named step_N is whole or has
// been tampered with, and reading verifies which.
//
// manifest.json: version, step, size and xxh3-64 of every other file as it was meant to be written,
// hashes of the frozen weights.
// config.yaml: the resolved config of the run.
// state.json: counters; what the trainer needs besides tensors.
// rank_0.safetensors: per trained parameter master.<name>, exp_avg.<name>, exp_avg_sq.<name>, fp32.
//
// Frozen weights are not stored; `frozen` keeps a hash per group, so that a resume with other
// weights is refused by name.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/fs.h"
#include "base/json.h"
#include "types/state_dict.h"

namespace mgm {

struct TrainCheckpoint {
  int64_t step = 0;
  std::string config_yaml;
  Json state;
  std::map<std::string, std::string> frozen;  // group -> hash
  // CPU fp32. As read they are views of the mapped file: read only, see checkpoint/tensor_source.h.
  std::map<std::string, at::Tensor> tensors;
};

// Publishes, then removes all but the newest `keep` (>= 1) checkpoints. Checkpoints of later steps
// are of a future that this run has left by going back; they are removed too, with a warning.
// What a crash left behind (step_N.tmp) is removed first. Throws Error(kInternal) naming the path
// on a full disk or a folder that cannot be written; older checkpoints are then as they were.
void write_train_checkpoint(const fs::path& run_dir, const TrainCheckpoint& checkpoint,
                            int64_t keep);

// Steps with a published checkpoint, ascending.
std::vector<int64_t> list_train_checkpoints(const fs::path& run_dir);
fs::path train_checkpoint_dir(const fs::path& run_dir, int64_t step);

// Verifies every size and hash, then reads. Throws CheckpointError that names the damaged file and
// the newest other checkpoint of the run that verifies, if there is one.
TrainCheckpoint read_train_checkpoint(const fs::path& dir);

}  // namespace mgm
