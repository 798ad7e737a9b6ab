#include "assemble/backbone_files.h"

#include "base/error.h"
#include "checkpoint/gguf_source.h"

namespace mgm {
namespace {

constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kIdKeys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};

bool is_copied(const std::string& name) {
  return name == kGeneration || name == "chat_template.jinja" || name.starts_with("LICENSE") ||
         name.starts_with("NOTICE");
}

// The ids of a config.json, of which eos_token_id may be a list.
OrderedJson ids_of(const Json& config) {
  OrderedJson out = OrderedJson::object();
  if (!config.is_object()) return out;
  for (const char* key : kIdKeys) {
    const auto it = config.find(key);
    if (it != config.end() && (it->is_number_integer() || it->is_array())) out[key] = *it;
  }
  return out;
}

OrderedJson backbone_ids(const fs::path& backbone) {
  std::error_code ignored;
  if (fs::is_regular_file(backbone, ignored)) {
    return is_gguf_file(backbone) ? read_gguf_configs(backbone).generation : OrderedJson::object();
  }
  if (!fs::is_directory(backbone, ignored)) return OrderedJson::object();
  const fs::path config = backbone / "config.json";
  if (fs::exists(config, ignored)) return ids_of(read_config_json(config));
  const std::vector<fs::path> ggufs = gguf_files(backbone);
  return ggufs.size() == 1 ? read_gguf_configs(ggufs[0]).generation : OrderedJson::object();
}

}  // namespace

std::map<std::string, std::string> backbone_files(const fs::path& backbone, const SpecialIds& ids) {
  std::map<std::string, std::string> out;
  std::error_code ignored;
  if (fs::is_directory(backbone, ignored)) {
    for (const auto& entry : fs::directory_iterator(backbone)) {
      const std::string name = entry.path().filename().string();
      if (entry.is_regular_file() && is_copied(name)) out[name] = read_file(entry.path());
    }
  }
  if (out.count(kGeneration) > 0) return out;
  OrderedJson generation = backbone_ids(backbone);
  const int64_t own[] = {ids.bos, ids.eos, ids.pad};
  for (size_t i = 0; i < std::size(own); ++i) {
    if (!generation.contains(kIdKeys[i]) && own[i] >= 0) generation[kIdKeys[i]] = own[i];
  }
  out[kGeneration] = generation.dump(2) + "\n";
  return out;
}

}  // namespace mgm
