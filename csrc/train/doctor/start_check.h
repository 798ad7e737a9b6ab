// The short form of `mgm doctor`, at every start of a run: what costs milliseconds and would
// otherwise be found after hours, or never.
#pragma once

#include "config/reader.h"
#include "dist/ranks.h"
#include "train/build.h"
#include "train/run_state.h"

namespace mgm {

// Before the groups are connected: same program, torch, config, mode, CUDA driver and NCCL on all
// ranks, a GPU and a local rank of its own for each; another model of GPU or version of the
// kernel's driver is a warning. Collective, through the store. Every rank throws the same
// PeerError, of the kind of the first failure (config, ranks), naming the rank that differs and
// what differs.
void check_ranks_agree(const Ranks& ranks, const RunConfig& config, const DeviceSetup& device);

// After: same data, tokenizer and weights (sampled) on all ranks, a run folder that all share, room
// on its disk for the checkpoints, right sums; memory that the plan does not fit into is a warning.
// Collective. Throws as above, also of the kinds data, checkpoint and (a full disk) internal; one
// rank alone throws Error. What only reads the run folder looks for neither one folder nor room:
// nothing is written there.
enum class FolderUse { kRead, kWrite };
void check_inputs_agree(Ranks& ranks, const RunConfig& config, const RunIdentity& identity,
                        const ModelParts& parts, const DeviceSetup& device, FolderUse use);

}  // namespace mgm
