// What all ranks must know of a step before they compute it, in one small sum over CPU tensors: the
// device does not wait for it. Equal on every rank.
#pragma once

#include <vector>

#include "config/run_config.h"
#include "dist/ranks.h"
#include "dist/shard_engine.h"
#include "types/batch.h"

namespace mgm {

// This rank's wishes; a step does what any rank asks for.
struct StepVotes {
  int stop_signal = 0;  // SIGTERM, SIGINT or SIGUSR1: save behind this step and end
  bool save = false;    // save behind this step and go on
};

struct StepAgreement {
  std::vector<MicroBatch> micro;  // one per micro-batch of a rank
  // Of the global batch:
  int64_t targets = 0;       // supervised tokens
  int64_t with_targets = 0;  // micro-batches that have any
  int64_t tokens = 0, images = 0, samples = 0, text_only = 0, holes = 0;
  StepVotes votes;
};

// Micro-batches that run one after another on one rank and leave it as one gradient: a leaf of a
// strict sum; else 1.
int64_t leaf_micro_batches(const RunConfig& config);

// Collective.
StepAgreement agree(Ranks& ranks, const RunConfig& config, const std::vector<Batch>& mine,
                    const StepVotes& votes = {});

}  // namespace mgm
