// `model.llm.arch: auto`: a training config that names only the directory of its language model.
#pragma once

#include "config/reader.h"

namespace mgm {

// Fills model.llm from the config.json of model.path, else of model.llm.path; from a GGUF file's
// metadata where that is what the path names or all the directory holds. Throws ConfigError if no
// path is set, CheckpointError naming the file on anything read_llm_config (hf_config.h) refuses.
void read_backbone(ModelConfig& model);

// read_run_configs (config/reader.h) with read_backbone. Throws ConfigError with every place where
// a stage that starts from published weights says something else of the language model or of a
// vision tower (tower_config.h) than the files beside them.
std::vector<ResolvedConfig> read_training_configs(const std::string& path,
                                                  const std::vector<std::string>& sets);

}  // namespace mgm
