// The weights a run starts from: the directories its config names, or random values from
// train.seed.
#pragma once

#include <vector>

#include "checkpoint/weight_loader.h"
#include "config/run_config.h"
#include "types/param.h"

namespace mgm {

// Hands the wanted elements of every parameter (`range`, checkpoint/weight_loader.h; not set: all)
// to `sink` exactly once, as a CPU tensor of any float dtype. Reads and draws nothing else.
//
// model.init random: every value is a function of (train.seed, parameter name, element).
// model.projector.path still overrides what that file holds. model.init pretrained: model.path (a
// complete model), else model.llm.path, model.vision_tower.path and model.convnext.path;
// model.projector.path on top. Projector and mining start random if no file has them, as in stage
// 1; anything else that is missing, or a tensor that nobody takes, is a CheckpointError with the
// whole list.
void initial_weights(const RunConfig& config, const std::vector<Param*>& params,
                     const WeightSink& sink,
                     const std::function<ElementRange(const Param&)>& range = {});

}  // namespace mgm
