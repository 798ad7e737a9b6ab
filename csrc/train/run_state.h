// A run's folder and what a checkpoint holds of it: choosing what to resume from, checking that it
// belongs to this config, data and weights, saving and restoring.
#pragma once

#include <optional>

#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/train_checkpoint.h"
#include "config/reader.h"
#include "train/build.h"
#include "train/train_module.h"

namespace mgm {

struct ResumeOptions {
  std::string from =
      "auto";  // auto: the newest checkpoint of run.dir, if any; never; or a checkpoint folder
  bool accept_changes = false;  // go on although the config differs from the checkpoint's
};

// What identifies the inputs of a run besides its config.
struct RunIdentity {
  std::string data_hash;
  std::string tokenizer_hash;
  std::string device;
  std::string dtype;  // that weights are used in: "Float", "BFloat16"
  int threads = 0;
  std::map<std::string, std::string> frozen;  // group -> hash of its frozen weights
};

RunIdentity identify(const DataParts& data, const DeviceSetup& device);  // `frozen` is left empty

// Keys whose difference a resume does not accept, as "key: then -> now".
std::vector<std::string> config_changes(const RunConfig& then, const RunConfig& now);

// The checkpoint to go on from, verified and open; nothing for a fresh start. Rank 0 chooses. In a
// start that a launcher repeats, the newest of the run's that is whole. Throws the same
// CheckpointError on every rank if it is damaged, or was made with another config (every differing
// key is listed), data or tokenizer. Collective.
std::optional<TrainCheckpoint> choose_checkpoint(const ResolvedConfig& resolved,
                                                 const RunIdentity& identity,
                                                 const ResumeOptions& options, Ranks& ranks);

// Puts weights and moments back (checkpoint/train_state.h); whole copies of parameters follow with
// ShardEngine::parameters_loaded.
void restore(const TrainCheckpoint& checkpoint, TrainModule& module);

// Bytes of metrics.jsonl that belong to the checkpoint. Throws CheckpointError.
int64_t metrics_offset(const TrainCheckpoint& checkpoint);

// Throws CheckpointError naming the group whose frozen weights are not those of the checkpoint.
void check_frozen(const TrainCheckpoint& checkpoint, const std::map<std::string, std::string>& now);

// What CheckpointSaver takes: once, and for every save.
std::vector<GroupState> train_state(TrainModule& module);
CheckpointContent capture(int64_t step, const ResolvedConfig& resolved, const RunIdentity& identity,
                          int64_t metrics_offset);

}  // namespace mgm
