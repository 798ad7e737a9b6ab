// What the files beside published vision towers say of them, held against a training config:
// numbers of heads, epsilons, the activation and the normalisation of pictures do not show in the
// shapes of weights.
#pragma once

#include <vector>

#include "config/run_config.h"

namespace mgm {

// Every place where a config that starts from published weights says something else than
//   config.json of model.path: mm_* fields and what is under "mgm";
//   config.json of a CLIP directory: CLIPVisionConfig, or CLIPConfig's vision_config;
//   preprocessor_config.json beside it: image_mean, image_std, crop_size;
//   open_clip_config.json of a ConvNeXt directory: timm_model_name, mean, std.
// Fields that are not in a CLIP's config.json have the defaults of transformers; files that are not
// there say nothing. An activation that is not computed is a problem too. Throws CheckpointError
// naming the file for fields of a wrong type.
std::vector<ConfigProblem> tower_problems(const RunConfig& config);

}  // namespace mgm
