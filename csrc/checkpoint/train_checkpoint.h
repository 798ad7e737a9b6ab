// Training checkpoints, reading: run.dir/checkpoints/step_N/ with
//
//   manifest.json        what every other file is meant to be (checkpoint/checkpoint_manifest.h)
//   config.yaml          the resolved config of the run
//   state.json           counters; what the trainer needs besides tensors; the layout of the shards
//   rank_R.safetensors   one per rank that wrote: per group "master.<group>", "exp_avg.<group>" and
//                        "exp_avg_sq.<group>", fp32: the rank's range of the group's flat buffer
//
// Written by checkpoint/checkpoint_writer.h for any number of ranks and read by any other: a reader
// asks for elements of a parameter, and only the bytes that hold them are touched.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/json.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/state_layout.h"
#include "checkpoint/tensor_source.h"
#include "dist/ranks.h"

namespace mgm {

class TrainCheckpoint {
 public:
  // Reads all but the shards; verifies no hash. Throws CheckpointError.
  explicit TrainCheckpoint(const fs::path& dir);

  const fs::path& dir() const { return dir_; }
  const Manifest& manifest() const { return manifest_; }
  int64_t step() const { return manifest_.step; }
  const std::string& config_yaml() const { return config_yaml_; }
  const Json& state() const { return state_; }  // without the layout
  const StateLayout& layout() const { return *layout_; }

  bool contains(const std::string& parameter) const { return places_.count(parameter) > 0; }
  const StateLayout::Place& place(const std::string& parameter) const;

  // Elements [first, first + values.numel()) of a parameter: a CPU fp32 view of the mapped file,
  // read only, which outlives the checkpoint and the folder.
  using Sink = std::function<void(int64_t first, const at::Tensor& values)>;
  // Hands over elements [first, first + count) of a parameter in the pieces they lie in, in any
  // order. `kind`: one of kStateKinds. Throws CheckpointError: no such parameter, a shard that is
  // not as the layout says. Not for several threads at once.
  void read(const std::string& kind, const std::string& parameter, int64_t first, int64_t count,
            const Sink& sink) const;

 private:
  const TensorSource& shard(int rank) const;

  fs::path dir_;
  Manifest manifest_;
  std::string config_yaml_;
  Json state_;
  std::shared_ptr<const StateLayout> layout_;
  std::map<std::string, StateLayout::Place> places_;
  mutable std::map<int, SourcePtr> shards_;
};

// Checks every size and hash; the files are dealt to the ranks, so that each is read once. Throws
// the same CheckpointError on every rank: the first bad file by name. Collective.
void verify_train_checkpoint(const fs::path& dir, Ranks& ranks);

// The newest checkpoint of the run that verifies, `except` left out. Collective.
std::optional<int64_t> newest_whole_checkpoint(const fs::path& run_dir, Ranks& ranks,
                                               int64_t except = -1);

// Verifies and opens. Throws the same CheckpointError on every rank; it names the damaged file and
// the newest other checkpoint of the run that verifies, if there is one. Collective.
TrainCheckpoint open_train_checkpoint(const fs::path& dir, Ranks& ranks);

}  // namespace mgm
