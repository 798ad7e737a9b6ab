// Hashes of what every rank of a run must have the same of.
#pragma once

#include <string>

#include "config/run_config.h"
#include "data/annotations.h"
#include "launch/env.h"
#include "text/tokenizer.h"
#include "train/doctor/compare.h"
#include "train/doctor/facts.h"

namespace mgm {

std::string program_hash();  // of the file this process was started from
std::string data_hash(const AnnotationIndex& index);
std::string tokenizer_hash(const Tokenizer& tokenizer);
// How much of a tensor's bytes counts: none, four places of 4 KiB from its first byte to its last,
// or all.
enum class WeightContent { kNone, kSampled, kWhole };
// Of every file that model.* names: names, types, shapes and sizes from the headers, and content. A
// file that is not there is part of the hash. Throws CheckpointError.
std::string weights_hash(const RunConfig& config, WeightContent content);
// "key: value" lines of every key.
std::string config_lines(const RunConfig& config);

// Where a rank is, with nothing to compare yet.
RankFacts rank_place(const LaunchEnv& env, const HostFacts& host);
// What can be said before anything of the run is opened: program, torch, config, place.
RankFacts place_facts(const RunConfig& config, const LaunchEnv& env, const HostFacts& host,
                      const GpuFacts& gpu);
// What is known once the inputs are open; an empty hash is one this rank does not know.
RankFacts input_facts(const LaunchEnv& env, const HostFacts& host, const std::string& data_hash,
                      const std::string& tokenizer_hash, const std::string& weights_hash);

}  // namespace mgm
