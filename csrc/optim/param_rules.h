// train.rules resolved: which parameters train, at which rate and decay. Rules apply in order and
// the last match wins; what no rule matches is frozen.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"
#include "types/param.h"

namespace mgm {

struct RuleOutcome {
  std::vector<ParamPolicy> policies;    // one per parameter
  std::vector<ConfigProblem> problems;  // patterns that match nothing
};

// The patterns a preset stands for, with the model's sizes filled in.
std::vector<std::string> preset_patterns(RulePreset preset, const ModelConfig& model);

RuleOutcome resolve_rules(const std::vector<Param*>& params, const RunConfig& config);

}  // namespace mgm
