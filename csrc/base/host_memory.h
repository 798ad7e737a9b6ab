// How much memory a process may still take: what the machine has and what the cgroups it runs in
// (a container, a SLURM job) allow, whichever is less.
#pragma once

#include <cstdint>

#include "base/fs.h"

namespace mgm {

// Bytes, page cache that can be dropped counted as free. `root`: where /proc and /sys are, for
// tests. What cannot be read does not limit.
uint64_t available_host_memory(const fs::path& root = "/");

}  // namespace mgm
