// Device memory of one rank through a training step: what it holds all along, and the highest point
// of one walk through the step's passes (train/step_walk.h), by part. Bytes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "train/plan/use_memory.h"

namespace mgm {

// What the sharding engine and the optimizer hold all along; as dist/param_store.h and
// optim/adamw.h allocate it, alignment included.
struct StateMemory {
  double weights = 0;  // whole, or this rank's part where parameters are cut
  double master = 0;   // fp32 copies; 0 where the weights are fp32 themselves
  double moments = 0;
  double gradients = 0;  // fp32 sums of this rank's part
};
StateMemory state_memory(const std::vector<GroupSize>& sizes, const Topology& run, double element);

struct MemoryPlan {
  StateMemory state;
  // With offload: optimizer, page-locked host memory of master, moments and what travels; master
  // and moments are then 0 in `state`.
  double host = 0;
  // At the highest point:
  std::string where;      // "backward of model.layers.31"
  double gathered = 0;    // whole parameters that are there for a while
  double buckets = 0;     // gradients on their way out, strict sums under way
  double kept = 0;        // activations that wait for their backward, of other blocks
  double working = 0;     // the block that runs
  double batch = 0;       // the micro-batch
  double workspaces = 0;  // cuBLAS, cuDNN: taken from the same allocator
  double peak() const;    // what the device allocator reports as its peak
  // Beside the allocator: CUDA context, NCCL's buffers, fragmentation.
  double context = 0, nccl = 0, fragmentation = 0;
  double total() const { return peak() + context + nccl + fragmentation; }
  // For information; parts of `working` at their own high points.
  double logits = 0;    // logits, their softmax and gradient
  double encoders = 0;  // the encoders' highest point
};

// `micro_batches`: of one rank in a step, all of shape `shape`.
MemoryPlan plan_memory(const PlannedModel& model, const Topology& topology, bool offload,
                       const BatchShape& shape, int64_t micro_batches);

}  // namespace mgm
