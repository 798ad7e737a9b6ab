// Whether a host, its GPU and the folder of the run can carry what a run needs; each a function of
// facts that are passed in.
#pragma once

#include "config/reader.h"
#include "launch/env.h"
#include "train/doctor/facts.h"
#include "train/doctor/finding.h"
#include "train/doctor/needs.h"

namespace mgm {

// Memory alone.
Finding check_host_memory(const HostFacts& host, const Needs& needs, const LaunchEnv& env);
Finding check_gpu_memory(const GpuFacts& gpu, int64_t wanted);
// With these, limits, cores, versions.
Findings check_host(const HostFacts& host, const Needs& needs, const RunConfig& config,
                    const LaunchEnv& env);
Findings check_gpu(const GpuFacts& gpu, const Needs& needs, const RunConfig& config,
                   const DeviceSetup& device);
// `free_bytes`: on the disk of run.dir; `held`: by checkpoints that are there and will be replaced.
Finding check_disk(const std::string& dir, int64_t free_bytes, int64_t held, const Needs& needs);

// What the disk of a folder (or of the nearest one above it that exists) has free.
int64_t free_on_disk(const fs::path& dir);
// Of the files below run.dir/checkpoints.
int64_t held_by_checkpoints(const fs::path& run_dir);

}  // namespace mgm
