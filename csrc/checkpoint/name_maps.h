// From the names of published encoder files to ours (NameMap of checkpoint/tensor_source.h). A
// tensor that a map drops is one the model does not have, such as the text half of CLIP.
#pragma once

#include <optional>
#include <string>

namespace mgm {

// Hugging Face CLIP: "vision_model.*" -> "model.vision_tower.vision_tower.vision_model.*".
std::optional<std::string> map_clip_name(const std::string& name);

// The name in OpenCLIP's own model: training checkpoints of OpenCLIP wrap it in "state_dict." and
// "module.", which go.
std::string bare_openclip_name(const std::string& name);

// OpenCLIP ConvNeXt, wrapped or not: "visual.trunk.stem.*" and "visual.trunk.stages.*" ->
// "model.vision_tower_aux.vision_stem.*" and "...vision_stages.*".
std::optional<std::string> map_openclip_name(const std::string& name);

}  // namespace mgm
