// From what a launcher says to the device and the groups of one rank of a run.
#pragma once

#include "config/run_config.h"
#include "dist/ranks.h"
#include "train/device.h"

namespace mgm {

// The device of this rank (train/device.h); a strict run takes deterministic algorithms and one
// thread per rank on the CPU, whatever else is set.
DeviceSetup setup_device(const RunConfig& config, const LaunchEnv& env);

// This rank's place in run number `run_number` of this process. Throws ConfigError (dist.backend,
// dist.shard_size, dist.virtual_shards).
Ranks take_place(const RunConfig& config, const Meeting& meeting, const DeviceSetup& device,
                 int run_number);
// Connects its groups. Collective. Throws DistError.
void join(Ranks& ranks, const RunConfig& config, const DeviceSetup& device);

}  // namespace mgm
