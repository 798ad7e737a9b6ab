#include "assemble/initial_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "assemble/adapter_dir.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/mm_projector_file.h"
#include "checkpoint/name_maps.h"
#include "nn/init.h"

namespace mgm {
namespace {

constexpr int64_t kPiece = 1 << 20;  // elements

// What a published language model and its towers lack.
bool may_start_random(const std::string& name) {
  return is_projector_or_mining(name) || is_adapter_weight(name);
}

// What scales an adapter has to be what it was trained with. Which linears it is of, the names of
// its weights tell.
void check_same_adapter(const AdapterConfig& config) {
  const AdapterConfig file = read_adapter_config(config.path);
  const auto compare = [&](const char* key, const auto& ours, const auto& theirs) {
    if (ours == theirs) return;
    throw ConfigError("model.adapter.", key, ": ", ours, ", but ", config.path, " has ", theirs);
  };
  compare("rank", config.rank, file.rank);
  compare("alpha", config.alpha, file.alpha);
  compare("rslora", cat(std::boolalpha, config.rslora), cat(std::boolalpha, file.rslora));
}

std::vector<OverlayLayer> weight_layers(const RunConfig& config) {
  const ModelConfig& m = config.model;
  std::vector<OverlayLayer> layers;
  if (m.init == ModelInit::kPretrained) {
    if (!m.path.empty()) {
      layers.push_back({open_model_dir(m.path), {}});
    } else {
      if (m.llm.path.empty()) {
        throw ConfigError(
            "model.init: pretrained needs model.path, or model.llm.path (and "
            "model.vision_tower.path "
            "and model.convnext.path, unless these train from scratch); or set model.init: random");
      }
      layers.push_back({open_model_dir(m.llm.path), {}});
      if (!m.vision_tower.path.empty()) {
        layers.push_back({open_model_dir(m.vision_tower.path), map_clip_name});
      }
      if (m.hr_encoder != HrEncoder::kNone && !m.convnext.path.empty()) {
        layers.push_back({open_model_dir(m.convnext.path), map_openclip_name});
      }
    }
  }
  if (!m.projector.path.empty()) {
    if (!fs::exists(m.projector.path)) {
      throw CheckpointError("model.projector.path: ", m.projector.path,
                            " is not there; stage 1 writes it when it completes. To begin with a "
                            "random projector: --set 'model.projector.path=\"\"'");
    }
    layers.push_back({open_projector_file(m.projector.path, /*aux_tower=*/true), {}});
  }
  if (!m.adapter.path.empty()) {
    check_same_adapter(m.adapter);
    for (OverlayLayer& layer : open_adapter_layers(m.adapter.path)) {
      layers.push_back(std::move(layer));
    }
  }
  return layers;
}

// In bounded pieces: nobody needs a large parameter twice.
void draw(Param& param, uint64_t seed, const ElementRange& wanted, const WeightSink& sink) {
  const int64_t end = wanted.first + wanted.count;
  for (int64_t first = wanted.first; first < end; first += kPiece) {
    at::Tensor values = at::empty({std::min(kPiece, end - first)}, at::kFloat);
    init_range(param.spec, seed, first, values);
    sink(param, first, values);
  }
}

}  // namespace

bool is_drawn_tower(const ModelConfig& model, const std::string& name) {
  if (model.init == ModelInit::kRandom || !model.path.empty()) return false;
  return (model.vision_tower.path.empty() && name.starts_with("model.vision_tower.")) ||
         (model.convnext.path.empty() && name.starts_with("model.vision_tower_aux."));
}

InitialWeights::InitialWeights(const RunConfig& config)
    : seed_(static_cast<uint64_t>(config.train.seed)) {
  const std::vector<OverlayLayer> layers = weight_layers(config);
  if (!layers.empty()) source_.emplace(layers);
}

void InitialWeights::read(Param& param, const WeightSink& sink) const {
  const int64_t numel = param.spec.numel();
  if (!source_ || !source_->contains(param.spec.name)) {
    draw(param, seed_, {0, numel}, sink);
    return;
  }
  const at::Tensor values = source_->read(param.spec.name).view(-1);
  for (int64_t first = 0; first < numel; first += kPiece)
    sink(param, first, values.narrow(0, first, std::min(kPiece, numel - first)));
}

void initial_weights(const RunConfig& config, const std::vector<Param*>& params,
                     const WeightSink& sink,
                     const std::function<ElementRange(const Param&)>& range) {
  const bool random = config.model.init == ModelInit::kRandom;
  std::set<std::string> loaded;
  const std::vector<OverlayLayer> layers = weight_layers(config);
  if (!layers.empty()) {
    const OverlaySource source(layers);
    LoadOptions options;
    options.allow_missing = true;  // which ones may be missing is decided below
    options.range = range;
    for (const Param* param : params) {
      if (source.contains(param->spec.name)) loaded.insert(param->spec.name);
    }
    const LoadReport report = load_weights(params, source, options, sink);
    log::info(cat("weights: ", report.loaded, " tensors, ", human_bytes(double(report.bytes)),
                  " from ", source.description()));
    if (!report.ignored.empty())
      log::info(cat("weights: ignored buffers: ", join(report.ignored, ", ")));
  }
  std::vector<std::string> missing;
  int64_t fresh = 0;
  for (Param* param : params) {
    if (loaded.count(param->spec.name)) continue;
    const std::string& name = param->spec.name;
    const bool from_adapter = is_adapter_weight(name) && !config.model.adapter.path.empty();
    const bool may_draw = random || may_start_random(name) || is_drawn_tower(config.model, name);
    if (from_adapter || !may_draw) {
      missing.push_back(param->spec.name);
      continue;
    }
    ++fresh;
    draw(*param, static_cast<uint64_t>(config.train.seed),
         range ? range(*param) : ElementRange{0, param->spec.numel()}, sink);
  }
  if (!missing.empty()) {
    constexpr size_t kShown = 20;
    const size_t count = missing.size();
    if (count > kShown) missing.resize(kShown);
    throw CheckpointError("the directories of model.* lack ", count,
                          " parameters: ", join(missing, ", "), count > kShown ? ", ..." : "");
  }
  if (fresh > 0) log::info(cat("weights: ", fresh, " tensors drawn from seed ", config.train.seed));
}

}  // namespace mgm
