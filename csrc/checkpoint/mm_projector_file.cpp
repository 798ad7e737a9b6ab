#include "checkpoint/mm_projector_file.h"

#include <cctype>

#include "base/error.h"

namespace mgm {
namespace {

constexpr const char* kKept[] = {"mm_projector", "vision_resampler", "vlm_uni",
                                 "vision_tower", "vision_fpn",       "vision_stages"};

// "0.weight", "2.bias", "weight": names inside the projector itself.
bool inside_projector(const std::string& name) {
  if (name == "weight" || name == "bias") return true;
  return !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) &&
         name.find('.') == name.rfind('.');
}

std::optional<std::string> map_name(const std::string& name, bool aux_tower) {
  const auto from = [&](const char* part) -> std::optional<std::string> {
    const size_t at = name.find(part);
    if (at == name.npos || (at > 0 && name[at - 1] != '.')) return std::nullopt;
    return "model." + name.substr(at);
  };
  for (const char* part : {"mm_projector.", "vlm_uni_", "vision_tower.vision_tower."}) {
    if (const auto ours = from(part)) return ours;
  }
  for (const char* part : {"vision_tower_aux.vision_stem.", "vision_tower_aux.vision_stages."}) {
    if (const auto ours = from(part)) return aux_tower ? ours : std::nullopt;
  }
  const std::string bare = name.rfind("model.", 0) == 0 ? name.substr(6) : name;
  if (inside_projector(bare)) return "model.mm_projector." + bare;
  return std::nullopt;
}

}  // namespace

bool in_projector_file(const std::string& name) {
  for (const char* part : kKept) {
    if (name.find(part) != name.npos) return true;
  }
  return false;
}

bool is_projector_or_mining(const std::string& name) {
  return name.starts_with("model.mm_projector") || name.starts_with("model.vlm_uni_");
}

void write_projector_file(const fs::path& path, const std::vector<TensorSpec>& tensors,
                          const TensorGetter& get) {
  std::vector<TensorSpec> kept;
  for (const TensorSpec& spec : tensors) {
    if (in_projector_file(spec.name)) kept.push_back(spec);
  }
  if (kept.empty()) {
    throw CheckpointError(path.string(), ": the model has no parameter of a projector file");
  }
  write_torch_file(path, kept, get);
}

std::shared_ptr<const OverlaySource> open_projector_file(const fs::path& path, bool aux_tower) {
  const auto map = [aux_tower](const std::string& name) { return map_name(name, aux_tower); };
  return std::make_shared<OverlaySource>(std::vector<OverlayLayer>{{open_tensor_file(path), map}},
                                         path.string());
}

}  // namespace mgm
