#include "assemble/backbone_config.h"

#include "assemble/hf_config.h"
#include "base/error.h"
#include "base/fs.h"
#include "checkpoint/gguf_source.h"

namespace mgm {
namespace {

fs::path gguf_or_config(const fs::path& path) {
  if (!fs::exists(path)) throw CheckpointError(path.string(), ": no such file or folder");
  if (!fs::is_directory(path)) return path;
  const fs::path config = path / "config.json";
  const std::vector<fs::path> ggufs = gguf_files(path);
  return !fs::exists(config) && ggufs.size() == 1 ? ggufs.front() : config;
}

}  // namespace

void read_backbone(ModelConfig& model) {
  const fs::path path = model.path.empty() ? model.llm.path : model.path;
  if (path.empty()) {
    throw ConfigError("arch: auto reads the sizes from the directory of the language model; set ",
                      "model.llm.path, or a named arch and its sizes");
  }
  const fs::path file = gguf_or_config(path);
  const Json json = fs::exists(file) && is_gguf_file(file) ? Json(read_gguf_configs(file).config)
                                                           : read_json(file);
  read_llm_config(json, file.string(), model.llm);
}

std::vector<ResolvedConfig> read_training_configs(const std::string& path,
                                                  const std::vector<std::string>& sets) {
  return read_run_configs(path, sets, read_backbone);
}

}  // namespace mgm
