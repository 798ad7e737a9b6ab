// Which linears of a language model get low-rank adapters: model.adapter (config/run_config.h)
// applied to the linears of a decoder. Names are published ones
// ("model.layers.0.self_attn.q_proj"), as PEFT's target_modules see them.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"
#include "nn/layers.h"

namespace mgm {

// alpha / rank, with rslora alpha / sqrt(rank).
double adapter_scale(const AdapterConfig& config);

// Declares adapters on those of `linears` that config.targets names. Does nothing for kind none.
void add_adapters(const AdapterConfig& config, const std::vector<Linear*>& linears);

// Targets that name none of `linears`, each with the nearest names.
std::vector<ConfigProblem> check_targets(const AdapterConfig& config,
                                         const std::vector<Linear*>& linears);

}  // namespace mgm
