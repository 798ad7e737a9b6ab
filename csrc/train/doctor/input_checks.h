// Whether what a config names can be trained on: batch arithmetic, weights, tokenizer, data, the
// run folder.
#pragma once

#include <memory>

#include "data/annotations.h"
#include "data/sample.h"
#include "launch/env.h"
#include "train/build.h"
#include "train/doctor/finding.h"

namespace mgm {

// Batch arithmetic against the world.
Findings check_batch(const RunConfig& config, const LaunchEnv& env);

// Every source exists, and its names and shapes are the model's; from headers alone, or (`deep`)
// reading every weight for NaN and infinity.
Findings check_weights(const RunConfig& config, const ModelParts& parts, bool deep);

// *out: the tokenizer, if it loads.
Findings check_tokenizer(const RunConfig& config, std::unique_ptr<Tokenizer>* out);

// *out: the index, if every file can be indexed.
Findings check_annotations(const RunConfig& config, std::unique_ptr<AnnotationIndex>* out);

// Builds the first `samples` (< 0: all) as training would.
Findings check_samples(const RunConfig& config, const AnnotationIndex& index,
                       const Tokenizer& tokenizer, int64_t samples);

// Whether run.dir can be written, is free (asked by the first rank alone) and its newest checkpoint
// belongs to this config and data. "" hashes are not compared.
Findings check_run_folder(const ResolvedConfig& resolved, bool first_rank,
                          const std::string& data_hash, const std::string& tokenizer_hash);

}  // namespace mgm
