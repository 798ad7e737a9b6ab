// Every dist.mode on given machines: memory, communication and time of each, with and without
// offload, which one to take, and what would help when none fits.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/plan/comm.h"
#include "train/plan/memory.h"

namespace mgm {

// What the user asks about. 0: the default.
struct PlanRequest {
  Cluster cluster;
  int64_t tokens = 0;  // of a sample, visual tokens included. Default: text.max_length for memory,
                       // the assumed mean for time
  int64_t images = 1;  // pictures of a sample
};

struct ModePlan {
  DistMode mode = DistMode::kReplicate;
  Topology topology;  // one rank: replicate, whatever the mode
  bool offload = false;
  MemoryPlan memory;
  CommPlan comm;
  bool fits = false;

  std::string name() const;  // "zero3", "hybrid 8, offload"
};

struct ClusterPlan {
  PlanRequest request;
  int64_t micro_batch = 0, accumulation = 0;
  int64_t global_batch = 0;  // what the ranks make of it: the config's, or the next that divides
  BatchShape memory_shape, time_shape;
  std::vector<ModePlan> modes;    // each without offload, then each with
  int configured = -1;            // in modes: what the config says; -1: it cannot be had
  int best = -1;                  // the cheapest that fits; -1: none
  std::vector<std::string> help;  // if none fits: what would

  double samples_per_s(const ModePlan& mode) const;
};

ClusterPlan plan_cluster(const PlannedModel& model, const PlanRequest& request);

}  // namespace mgm
