// `mgm train CONFIG --rehearse --world N`: the rehearsal (train/rehearsal.h) of a config's run.
#pragma once

#include <string>

#include "config/reader.h"
#include "train/rehearsal.h"

namespace mgm {

// Throws ConfigError when the ranks do not divide the global batch or dist.shard_size the ranks.
RehearsalRun rehearsal_run(const ResolvedConfig& resolved, int world, int local_world);

// What ranks have in their micro-batches: by the data plan where the annotation files are there
// (the first steps, and the first one of text alone), else drawn from train.seed.
std::vector<RehearsedStep> rehearsal_steps(const ResolvedConfig& resolved, int world);

// Runs it and returns a summary. Throws DistError that names every difference found.
std::string rehearsal_report(const ResolvedConfig& resolved, int world, int local_world);

}  // namespace mgm
