#include "assemble/backbone_config.h"

#include <algorithm>

#include "assemble/hf_config.h"
#include "assemble/tower_config.h"
#include "base/error.h"
#include "base/fs.h"
#include "checkpoint/gguf_source.h"
#include "config/writer.h"

namespace mgm {
namespace {

fs::path gguf_or_config(const fs::path& path) {
  if (!fs::exists(path)) throw CheckpointError(path.string(), ": no such file or folder");
  if (!fs::is_directory(path)) return path;
  const fs::path config = path / "config.json";
  const std::vector<fs::path> ggufs = gguf_files(path);
  return !fs::exists(config) && ggufs.size() == 1 ? ggufs.front() : config;
}

fs::path backbone_path(const ModelConfig& model) {
  return model.path.empty() ? model.llm.path : model.path;
}

Json read_published(const fs::path& file) {
  return fs::exists(file) && is_gguf_file(file) ? Json(read_gguf_configs(file).config)
                                                : read_config_json(file);
}

// What shapes do not tell (the base of the rotation, an epsilon, a window) would train as a model
// that nobody published. What is the trainer's to choose is left out, and what both say in other
// words. Directories that are not there are named when they are opened.
std::vector<ConfigProblem> backbone_problems(const RunConfig& config) {
  const ModelConfig& model = config.model;
  const fs::path path = backbone_path(model);
  if (model.init != ModelInit::kPretrained || !fs::exists(path)) return {};
  const fs::path file = gguf_or_config(path);
  if (!fs::exists(file)) return {};
  RunConfig published = config;
  const LlmConfig& ours = model.llm;
  LlmConfig& theirs = published.model.llm;
  read_llm_config(read_published(file), file.string(), theirs);
  theirs.activation = ours.activation;
  theirs.router_aux_loss = ours.router_aux_loss;
  theirs.max_positions = ours.max_positions;
  if (ours.layer_types.empty()) theirs.layer_types.clear();
  const int64_t head_dim = theirs.hidden_size / std::max<int64_t>(1, theirs.num_heads);
  if (ours.head_dim == 0 && theirs.head_dim == head_dim) theirs.head_dim = 0;
  if (ours.query_scalar == 0 && theirs.query_scalar == double(head_dim)) theirs.query_scalar = 0;
  std::vector<ConfigProblem> problems;
  for (const ConfigDifference& d : diff(config, published)) {
    problems.push_back(
        {d.key, cat("is ", d.a.value_or("not there"), ", but ", file.string(), " has ",
                    d.b.value_or("none"), "; write that, or take model.llm.arch: auto")});
  }
  return problems;
}

}  // namespace

void read_backbone(ModelConfig& model) {
  const fs::path path = backbone_path(model);
  if (path.empty()) {
    throw ConfigError("arch: auto reads the sizes from the directory of the language model; set ",
                      "model.llm.path, or a named arch and its sizes");
  }
  const fs::path file = gguf_or_config(path);
  read_llm_config(read_published(file), file.string(), model.llm);
}

std::vector<ResolvedConfig> read_training_configs(const std::string& path,
                                                  const std::vector<std::string>& sets) {
  std::vector<ResolvedConfig> stages = read_run_configs(path, sets, read_backbone);
  for (const ResolvedConfig& stage : stages) {
    std::vector<ConfigProblem> problems = backbone_problems(stage.config);
    for (ConfigProblem& problem : tower_problems(stage.config)) {
      problems.push_back(std::move(problem));
    }
    if (!problems.empty()) throw_problems(stage, problems);
  }
  return stages;
}

}  // namespace mgm
