#include "checkpoint/name_maps.h"

#include <string_view>

namespace mgm {
namespace {

bool strip(std::string_view& name, std::string_view prefix) {
  if (name.substr(0, prefix.size()) != prefix) return false;
  name.remove_prefix(prefix.size());
  return true;
}

}  // namespace

std::optional<std::string> map_clip_name(const std::string& name) {
  if (name.rfind("vision_model.", 0) != 0) return std::nullopt;
  return "model.vision_tower.vision_tower." + name;
}

std::string bare_openclip_name(const std::string& name) {
  std::string_view rest = name;
  strip(rest, "state_dict.");
  strip(rest, "module.");
  return std::string(rest);
}

std::optional<std::string> map_openclip_name(const std::string& name) {
  const std::string bare = bare_openclip_name(name);
  std::string_view rest = bare;
  if (!strip(rest, "visual.trunk.")) return std::nullopt;
  if (rest.substr(0, 5) != "stem." && rest.substr(0, 7) != "stages.") return std::nullopt;
  return "model.vision_tower_aux.vision_" + std::string(rest);
}

}  // namespace mgm
