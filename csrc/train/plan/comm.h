// Communication and time of a training step on one rank, from a walk through its passes with two
// clocks: what computes, and what travels behind it. A group's gather hides behind the computation
// of the group before it, its reduction behind the next one's; what does not hide is exposed.
//
// Rings: every rank sends and receives (n - 1) / n of a buffer for a gather or a reduce-scatter and
// twice that for an all-reduce. Seconds and bytes, of one rank.
#pragma once

#include <array>
#include <string>

#include "train/plan/flops.h"

namespace mgm {

// The machines that a plan is for. Bytes, bytes/s, FLOP/s. The defaults are what an H100 or H200
// reaches (docs/planning.md).
struct Cluster {
  int world = 1;
  int gpus_per_node = 8;
  double gpu_memory = 80.0 * (1 << 30);
  double link = 240e9;    // between the GPUs of a node, one direction
  double network = 40e9;  // per GPU between nodes, one direction
  double flops = 560e12;  // matrix products of a bf16 step
};

enum class Traffic {
  kGatherForward,
  kGatherBackward,
  kReduce,
  kReplicas,
  kUpdate,
  kExperts,
  kOther
};
inline constexpr int kTrafficKinds = 7;
const char* traffic_name(Traffic kind);

struct CommPlan {
  struct Volume {
    double bytes = 0;  // that this rank sends
    int64_t collectives = 0;
    double exposed_s = 0;
  };
  std::array<Volume, kTrafficKinds> volume;
  double compute_s = 0;    // forward, backward, recomputation, gradient copies
  double optimizer_s = 0;  // norm and AdamW; with offload the transfers and the host's part
  double step_s = 0;

  const Volume& of(Traffic kind) const { return volume[static_cast<size_t>(kind)]; }
  double bytes() const;
  double exposed_s() const;
};

// One step of `micro_batches` micro-batches of shape `shape`, in the steady state.
CommPlan plan_comm(const PlannedModel& model, const Topology& topology, bool offload,
                   const Cluster& cluster, const BatchShape& shape, int64_t micro_batches);

}  // namespace mgm
