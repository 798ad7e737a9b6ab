// Between what AdamW keeps of a run's parameters on this rank and what a checkpoint holds.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "checkpoint/train_checkpoint.h"
#include "dist/param_store.h"

namespace mgm {

// This rank's part of the state of one group, fp32: as long as the group's master.
struct GroupState {
  const ParamGroup* group = nullptr;
  at::Tensor exp_avg, exp_avg_sq;
};

// What this rank writes: names and contiguous fp32 views of the state, on its device.
struct ShardTensor {
  std::string name;  // "exp_avg.model.layers.0"
  at::Tensor values;
};
std::vector<ShardTensor> shard_tensors(const std::vector<GroupState>& state,
                                       const Topology& topology);

// Puts this rank's parts back, whatever the ranks and mode that wrote them; whole copies of
// parameters follow with ShardEngine::parameters_loaded. Throws CheckpointError with every trained
// parameter that is missing, left over or of another shape.
void restore_train_state(const TrainCheckpoint& checkpoint, ParamStore& store,
                         const std::vector<GroupState>& states);

}  // namespace mgm
