// A ProcessGroup over a c10d backend, and the makers of the two there are.
#pragma once

#include "base/json.h"
#include "dist/process_group.h"
#include "dist/rank_groups.h"
#include "dist/store.h"

namespace mgm {

struct GroupSettings {
  GroupPlace place;        // keys of the store and records of the log carry its name
  double timeout_s = 600;  // the outer net: no collective takes longer
  CollectiveLog* log = nullptr;
};

// CPU tensors. `address` is the local address other ranks reach this one by. Throws DistError.
std::unique_ptr<ProcessGroup> make_gloo_group(const std::shared_ptr<Store>& store,
                                              const GroupSettings& settings,
                                              const std::string& address);
// CUDA tensors of `device`; connects at once. Throws DistError; ConfigError in a build without
// CUDA.
std::unique_ptr<ProcessGroup> make_nccl_group(const std::shared_ptr<Store>& store,
                                              const GroupSettings& settings, int device);

// c10d's own record of the NCCL collectives of this process; null without NCCL.
Json nccl_trace();

}  // namespace mgm
