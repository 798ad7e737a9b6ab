#include "train/doctor/identity.h"

#include <ATen/ATen.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <string_view>

#include "assemble/published_weights.h"
#include "base/hash.h"
#include "checkpoint/gguf_source.h"
#include "checkpoint/mm_projector_file.h"
#include "config/flatten.h"
#include "dist/topology.h"

namespace mgm {
namespace {

struct WeightFile {
  std::string path;
  bool projector = false;
};

std::vector<WeightFile> weight_files(const ModelConfig& model) {
  std::vector<WeightFile> out;
  const auto add = [&](const std::string& path, bool projector) {
    if (!path.empty()) out.push_back({path, projector});
  };
  if (model.init == ModelInit::kPretrained) {
    add(model.path.empty() ? model.llm.path : model.path, false);
    const TowerDirs towers = tower_dirs(model);
    add(towers.vision_tower.string(), false);
    add(towers.convnext.string(), false);
  }
  add(model.projector.path, true);
  return out;
}

constexpr size_t kPlace = 4096, kPlaces = 4;

// Of a mapped file only the places that are looked at are touched.
std::string content_hash(const at::Tensor& values, WeightContent content) {
  const std::string_view bytes{static_cast<const char*>(values.const_data_ptr()),
                               static_cast<size_t>(values.nbytes())};
  if (content == WeightContent::kWhole) return hex64(hash64(bytes));
  const size_t place = std::min(kPlace, bytes.size());
  std::string sample;
  for (size_t i = 0; i < kPlaces; ++i) {
    sample += bytes.substr((bytes.size() - place) / (kPlaces - 1) * i, place);
  }
  return hex64(hash64(sample));
}

// A GGUF file's tensors as they lie there: unpacking the model to look at four places of each takes
// as long as reading it all, in every rank.
SourcePtr open_to_hash(const WeightFile& file) {
  if (file.projector) return open_projector_file(file.path, /*aux_tower=*/true);
  SourcePtr source = open_model_dir(file.path);
  return is_gguf_file(source->description()) ? open_gguf_packed(source->description()) : source;
}

std::string version_text(int version, int major, int minor) {
  return cat(version / major, ".", version % major / minor);
}

}  // namespace

std::string program_hash() { return hex64(hash_file("/proc/self/exe")); }

std::string data_hash(const AnnotationIndex& index) { return hex64(index.identity()); }

std::string tokenizer_hash(const Tokenizer& tokenizer) {
  std::string files;
  for (const auto& [name, content] : tokenizer.files()) {
    files += name + '\0' + hex64(hash64(content)) + '\0';
  }
  return hex64(hash64(files));
}

std::string weights_hash(const RunConfig& config, WeightContent content) {
  std::string text;
  for (const WeightFile& file : weight_files(config.model)) {
    if (!fs::exists(file.path)) {
      text += file.path + " is not there\n";
      continue;
    }
    const SourcePtr source = open_to_hash(file);
    for (const std::string& name : source->names()) {
      const TensorInfo& info = source->info(name);
      text += cat(name, ' ', info.dtype, ' ', info.bytes);
      for (const int64_t size : info.shape) text += cat(' ', size);
      if (content != WeightContent::kNone) text += ' ' + content_hash(source->read(name), content);
      text += '\n';
    }
  }
  return hex64(hash64(text));
}

std::string config_lines(const RunConfig& config) {
  std::string out;
  for (const FlatField& field : flatten(config)) out += cat(field.key, ": ", field.value, "\n");
  return out;
}

RankFacts rank_place(const LaunchEnv& env, const HostFacts& host) {
  RankFacts out;
  out.rank = env.rank;
  out.local_rank = env.local_rank;
  out.node = env.node;
  out.host = host.name;
  out.host_id = host.id();
  return out;
}

RankFacts input_facts(const LaunchEnv& env, const HostFacts& host, const std::string& data_hash,
                      const std::string& tokenizer_hash, const std::string& weights_hash) {
  RankFacts out = rank_place(env, host);
  out.shared = {{"the data set", data_hash, ExitCode::kData},
                {"the tokenizer", tokenizer_hash, ExitCode::kData},
                {"the weight files", weights_hash, ExitCode::kCheckpoint}};
  return out;
}

RankFacts place_facts(const RunConfig& config, const LaunchEnv& env, const HostFacts& host,
                      const GpuFacts& gpu) {
  RankFacts out = rank_place(env, host);
  out.gpu = gpu.uuid;
  out.shared = {{"the program", program_hash()},
                {"torch", TORCH_VERSION},
                {"the number of ranks", cat(env.world)},
                {"the config", hex64(hash64(config_lines(config))), ExitCode::kConfig},
                {"the sharding mode", name_of(config.dist.mode)},
                {"the device", gpu.ordinal < 0 ? "cpu" : "cuda"}};
  // Each rank takes its own host's number of ranks, and would cut the model its own way.
  if (config.dist.mode == DistMode::kHybrid && config.dist.shard_size == 0) {
    out.shared.push_back({"the shard group of a node (dist.shard_size: 0)",
                          cat(env.local_world, env.local_world == 1 ? " rank" : " ranks"),
                          ExitCode::kConfig, Level::kFail,
                          "hosts have different numbers of ranks: set dist.shard_size, or start as "
                          "many on each"});
  }
  if (gpu.ordinal >= 0) {
    out.shared.push_back({"the model of the GPU", gpu.name, ExitCode::kDist, Level::kWarn,
                          "all ranks go at the pace of the slowest; take GPUs of one kind"});
    out.shared.push_back(
        {"the NVIDIA driver", host.gpu_driver, ExitCode::kDist, Level::kWarn,
         "install the same on all hosts: what only some do wrong is hard to find"});
    out.shared.push_back({"the CUDA driver", version_text(gpu.driver, 1000, 10)});
    out.shared.push_back({"NCCL", version_text(gpu.nccl, 10000, 100)});
  }
  return out;
}

}  // namespace mgm
