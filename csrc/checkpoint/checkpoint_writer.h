// Training checkpoints, writing (checkpoint/train_checkpoint.h says what): every rank its shard to
// step_N.tmp, every file fsynced; rank 0 then config, state and a manifest, and one rename. Older
// checkpoints are not touched before the new one is published.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/save_channel.h"
#include "checkpoint/state_layout.h"
#include "checkpoint/train_state.h"

namespace mgm {

// What a checkpoint holds besides tensors; rank 0's counts.
struct CheckpointContent {
  int64_t step = 0;
  std::string config_yaml;
  Json state = Json::object();                // counters; the layout is added
  std::map<std::string, std::string> frozen;  // group -> hash of its frozen weights
};

// Asked for once, before the shard is written: returns when the tensors may be read. What it throws
// ends the save on all ranks.
using ShardGetter = std::function<const std::vector<ShardTensor>&()>;

struct WrittenCheckpoint {
  uint64_t bytes = 0;  // of all files; known to rank 0
};

// One save by all ranks; every rank calls it, on any thread. Publishes, then removes all but the
// newest `keep` (>= 1) checkpoints. Where a rank fails, every rank throws the same
// Error(kInternal), which names the rank, the path and the cause (full disk, folder that cannot be
// written).
WrittenCheckpoint write_train_checkpoint(const fs::path& run_dir, const CheckpointContent& content,
                                         const StateLayout& layout, const ShardGetter& shard,
                                         int64_t keep, SaveChannel& channel);

}  // namespace mgm
