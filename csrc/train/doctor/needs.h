// What a run will need of its hosts: arithmetic on parameter counts and the config.
#pragma once

#include <cstdint>
#include <string>

#include "dist/topology.h"
#include "train/build.h"

namespace mgm {

struct Needs {
  int64_t checkpoint = 0;  // bytes of one checkpoint on the disk, all ranks together
  // That exist at one time: keep, and the one being written; fewer where fewer are ever written.
  int64_t checkpoints = 0;
  // Bytes of host memory of one rank, and of its parts.
  int64_t state = 0;    // the training state itself: on the CPU, or offloaded
  int64_t copy = 0;     // what a checkpoint written beside training copies
  int64_t samples = 0;  // decoded and waiting
  int64_t host() const { return state + copy + samples; }
  int64_t device = 0;  // bytes on a rank's GPU
  int64_t begun = 0;   // of these taken once groups are connected: the context, NCCL's buffers
  int64_t pinned = 0;  // of host memory
};

Needs estimate_needs(const RunConfig& config, const ModelParts& parts, const DeviceSetup& device,
                     const Topology& topology);

}  // namespace mgm
