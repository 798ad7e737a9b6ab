#include "assemble/published_weights.h"

#include <algorithm>

#include "assemble/hf_config.h"
#include "assemble/json_fields.h"
#include "checkpoint/name_maps.h"

namespace mgm {
namespace {

fs::path find_dir(const std::string& named, const fs::path& dir, const char* what,
                  const char* key) {
  for (const fs::path& candidate : {fs::path(named), dir / named}) {
    if (!named.empty() && fs::is_directory(candidate)) return candidate;
  }
  throw CheckpointError(dir.string(), ": its shards hold no ", what, ", and the directory '", named,
                        "' that ", key, " or its config.json names for it does not exist");
}

}  // namespace

bool any_name(const TensorSource& source, const std::string& prefix) {
  return std::any_of(source.names().begin(), source.names().end(),
                     [&](const std::string& name) { return name.starts_with(prefix); });
}

TowerDirs towers_beside(const TensorSource& shards, const fs::path& dir, const ModelConfig& named,
                        const std::vector<OverlayLayer>& top) {
  const auto lies_beside = [&](const std::string& path, const std::string& prefix) {
    const bool on_top = path.empty() && std::any_of(top.begin(), top.end(), [&](const auto& layer) {
                          return any_name(*layer.source, prefix);
                        });
    return !on_top && !any_name(shards, prefix);
  };
  TowerDirs out;
  if (lies_beside(named.vision_tower.path, "model.vision_tower.")) {
    out.vision_tower =
        find_dir(named.vision_tower.path, dir, "vision tower", "model.vision_tower.path");
  }
  if (named.hr_encoder != HrEncoder::kNone &&
      lies_beside(named.convnext.path, "model.vision_tower_aux.")) {
    out.convnext = find_dir(named.convnext.path, dir, "HR vision tower", "model.convnext.path");
  }
  return out;
}

std::vector<OverlayLayer> open_published(const fs::path& base, const fs::path& dir,
                                         const ModelConfig& named,
                                         const std::vector<OverlayLayer>& top) {
  const SourcePtr shards = open_model_dir(base);
  const TowerDirs towers = towers_beside(*shards, dir, named, top);
  std::vector<OverlayLayer> layers;
  if (!towers.vision_tower.empty()) {
    layers.push_back({open_model_dir(towers.vision_tower), map_clip_name});
  }
  if (!towers.convnext.empty()) {
    layers.push_back({open_model_dir(towers.convnext), map_openclip_name});
  }
  layers.push_back({shards, {}});
  layers.insert(layers.end(), top.begin(), top.end());
  return layers;
}

ModelConfig with_published_towers(const ModelConfig& model) {
  ModelConfig out = model;
  const fs::path file = fs::path(model.path) / "config.json";
  if (!fs::exists(file)) return out;
  const Json json = read_config_json(file);
  const JsonFields fields(json, file.string());
  const auto fill = [&](std::string& path, const char* field) {
    if (path.empty()) path = fields.get_or<std::string>(field, "");
  };
  fill(out.vision_tower.path, "mm_vision_tower");
  fill(out.convnext.path, "mm_vision_tower_aux");
  return out;
}

TowerDirs tower_dirs(const ModelConfig& model) {
  if (model.init != ModelInit::kPretrained) return {};
  if (!model.path.empty()) {
    try {
      return towers_beside(*open_model_dir(model.path), model.path, with_published_towers(model));
    } catch (const CheckpointError&) {
      return {};
    }
  }
  TowerDirs out{model.vision_tower.path, {}};
  if (model.hr_encoder != HrEncoder::kNone) out.convnext = model.convnext.path;
  return out;
}

}  // namespace mgm
