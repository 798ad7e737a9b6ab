#include "assemble/initial_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "assemble/adapter_dir.h"
#include "assemble/published_weights.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/adapter_file.h"
#include "checkpoint/mm_projector_file.h"
#include "checkpoint/name_maps.h"
#include "nn/init.h"

namespace mgm {
namespace {

constexpr int64_t kPiece = 1 << 20;  // elements

// The part of the model that `name` is of, as a prefix of names; "" for the language model's own.
std::string weights_part(const std::string& name) {
  for (const char* part : {"model.mm_projector.", "model.vlm_uni_", "model.vision_tower.",
                           "model.vision_tower_aux."}) {
    if (name.starts_with(part)) return part;
  }
  return "";
}

// Whether train.seed may stand in for a weight that no file has. A file that was named for it has
// to have it, and of a part that some file has it has to have all: what is left out of it has been
// renamed or lost.
bool may_draw(const RunConfig& config, const std::set<std::string>& parts,
              const std::string& name) {
  const ModelConfig& m = config.model;
  const bool random = m.init == ModelInit::kRandom;
  if (is_adapter_weight(name)) return m.adapter.path.empty();
  if (is_projector_or_mining(name)) {
    if (!m.projector.path.empty() || !(random || m.path.empty())) return false;
  } else if (!random && !is_drawn_tower(m, name)) {
    return false;
  }
  return parts.count(weights_part(name)) == 0;
}

// What to do where projector or mining heads are missing.
std::string advice(const ModelConfig& model) {
  if (!model.projector.path.empty()) {
    return cat("model.projector.path: ", model.projector.path, " has to hold the whole projector",
               model.hr_encoder == HrEncoder::kNone ? "" : " and the mining heads",
               ", as the file that stage 1 leaves does; to begin with random ones: --set "
               "'model.projector.path=\"\"'",
               model.hr_encoder == HrEncoder::kNone
                   ? ""
                   : "; for a model without mining: --set model.hr_encoder=none");
  }
  if (model.init == ModelInit::kRandom || model.path.empty()) return "";
  return cat("model.path: ", model.path, " has to be a complete model; to take what it has and ",
             "begin with a random projector or random mining heads, name it as model.llm.path");
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

struct Sources {
  std::vector<OverlayLayer> layers;
  size_t base_layers = 0;           // the first ones: without projector and adapter
  std::vector<std::string> unused;  // "file: name" of what is in none of them
};

// Lays a projector file over what is there, whole parts at a time: of a file that lost a weight the
// rest is not mixed with another file's.
void lay_projector_over(const std::shared_ptr<const OverlaySource>& projector, bool mining,
                        std::vector<OverlayLayer>& layers) {
  std::set<std::string> parts = {"model.mm_projector."};
  if (mining) parts.insert("model.vlm_uni_");
  for (const std::string& name : projector->names()) {
    if (name.starts_with("model.vision_tower")) parts.insert(weights_part(name));
  }
  for (OverlayLayer& layer : layers) {
    layer.map = [parts, map = layer.map](const std::string& name) {
      std::optional<std::string> ours = map ? map(name) : name;
      if (ours && parts.count(weights_part(*ours)) > 0) ours.reset();
      return ours;
    };
  }
  layers.push_back({projector, {}});
}

Sources open_sources(const RunConfig& config) {
  const ModelConfig& m = config.model;
  Sources out;
  std::vector<OverlayLayer>& layers = out.layers;
  if (m.init == ModelInit::kPretrained) {
    if (!m.path.empty()) {
      layers = open_published(m.path, m.path, with_published_towers(m));
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
  out.base_layers = layers.size();
  if (!m.projector.path.empty()) {
    if (!fs::exists(m.projector.path)) {
      throw CheckpointError("model.projector.path: ", m.projector.path,
                            " is not there; stage 1 writes it when it completes. To begin with a "
                            "random projector: --set 'model.projector.path=\"\"'");
    }
    const auto projector = open_projector_file(m.projector.path, /*aux_tower=*/true);
    lay_projector_over(projector, m.hr_encoder != HrEncoder::kNone, layers);
    out.unused = projector->dropped();
  }
  if (!m.adapter.path.empty()) {
    check_same_adapter(m.adapter);
    for (OverlayLayer& layer : open_adapter_layers(m.adapter.path, m.llm.tie_embeddings)) {
      layers.push_back(std::move(layer));
    }
  }
  return out;
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
  const Sources sources = open_sources(config);
  base_layers_ = sources.base_layers;
  if (!sources.layers.empty()) source_.emplace(sources.layers);
}

bool InitialWeights::is_of_base(const std::string& name) const {
  return source_ && source_->contains(name) && source_->layer(name) < base_layers_;
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
  std::set<std::string> lacking;
  const Sources sources = open_sources(config);
  if (sources.layers.empty()) {
    for (const Param* param : params) lacking.insert(param->spec.name);
  } else {
    const OverlaySource source(sources.layers);
    std::set<std::string> parts;
    for (const std::string& name : source.names()) parts.insert(weights_part(name));
    parts.erase("");
    LoadOptions options;
    options.may_lack = [&](const Param& param) { return may_draw(config, parts, param.spec.name); };
    options.unused = sources.unused;
    options.range = range;
    for (const Param* param : params) {
      const std::string& name = param->spec.name;
      if (source.contains(name)) continue;
      lacking.insert(name);
      if (is_projector_or_mining(name)) options.advice = advice(config.model);
    }
    const LoadReport report = load_weights(params, source, options, sink);
    log::info(cat("weights: ", report.loaded, " tensors, ", human_bytes(double(report.bytes)),
                  " from ", source.description()));
    if (!report.ignored.empty())
      log::info(cat("weights: ignored buffers: ", join(report.ignored, ", ")));
  }
  int64_t fresh = 0;
  for (Param* param : params) {
    if (lacking.count(param->spec.name) == 0) continue;
    ++fresh;
    draw(*param, static_cast<uint64_t>(config.train.seed),
         range ? range(*param) : ElementRange{0, param->spec.numel()}, sink);
  }
  if (fresh > 0) log::info(cat("weights: ", fresh, " tensors drawn from seed ", config.train.seed));
}

}  // namespace mgm
