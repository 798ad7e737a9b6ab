// Hashes of what every rank of a run must have the same of.
#pragma once

#include <string>

#include "config/run_config.h"
#include "launch/env.h"
#include "text/tokenizer.h"
#include "train/doctor/compare.h"
#include "train/doctor/facts.h"

namespace mgm {

std::string program_hash();  // of the file this process was started from
std::string tokenizer_hash(const Tokenizer& tokenizer);
// Of every file that model.* names: names, types, shapes and sizes from the headers; with `content`
// of all bytes too. A file that is not there is part of the
// hash. Throws CheckpointError.
std::string weights_hash(const RunConfig& config, bool content);
// "key: value" lines of every key.
std::string config_lines(const RunConfig& config);

// What can be said before anything of the run is opened: program, torch, config, place.
RankFacts place_facts(const RunConfig& config, const LaunchEnv& env, const HostFacts& host,
                      const GpuFacts& gpu);

}  // namespace mgm
