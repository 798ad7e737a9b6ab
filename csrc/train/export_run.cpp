#include "train/export_run.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <set>

#include "assemble/adapter_dir.h"
#include "assemble/initial_weights.h"
#include "assemble/model_dir.h"
#include "assemble/published_weights.h"
#include "base/error.h"
#include "base/file_access.h"
#include "base/log.h"
#include "dist/frozen_hash.h"
#include "train/build.h"
#include "train/run_state.h"

namespace mgm {
namespace {

at::ScalarType run_dtype(const TrainCheckpoint& checkpoint) {
  const std::string name = checkpoint.state().value("dtype", "");
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    if (name == at::toString(type)) return type;
  }
  throw CheckpointError(checkpoint.dir().string(), "/state.json: unknown dtype '", name, "'");
}

// Which weights trained, by the config; the checkpoint must hold the same ones.
struct Trained {
  std::set<std::string> names;
  bool vision_tower = false, hr_encoder = false;
};

Trained trained_weights(const ModelParts& parts, const TrainCheckpoint& checkpoint) {
  Trained out;
  for (size_t i = 0; i < parts.params.size(); ++i) {
    if (!parts.policies[i].train) continue;
    const ParamSpec& spec = parts.params[i]->spec;
    if (checkpoint.place(spec.name).segment->shape != spec.shape) {
      throw CheckpointError(checkpoint.dir().string(), ": ", spec.name,
                            " is of another shape than its config.yaml says");
    }
    out.names.insert(spec.name);
    out.vision_tower |= spec.name.rfind("model.vision_tower.", 0) == 0;
    out.hr_encoder |= spec.name.rfind("model.vision_tower_aux.", 0) == 0;
  }
  size_t held = 0;
  for (const StateGroup& group : checkpoint.layout().groups) held += group.segments.size();
  if (held != out.names.size()) {
    throw CheckpointError(checkpoint.dir().string(), ": holds the state of ", held,
                          " weights, but its config.yaml trains ", out.names.size());
  }
  return out;
}

// Reads every frozen weight once and compares it with what the run had.
void check_sources(const RunConfig& config, const ModelParts& parts, const Trained& trained,
                   const TrainCheckpoint& checkpoint, at::ScalarType dtype) {
  constexpr int64_t kPiece = 1 << 20;  // elements that are converted at a time
  FrozenHasher hasher;
  initial_weights(
      config, parts.params,
      [&](Param& param, int64_t first, const at::Tensor& values) {
        const at::Tensor flat = values.view(-1);
        for (int64_t at = 0; at < flat.numel(); at += kPiece) {
          const at::Tensor piece = flat.narrow(0, at, std::min(kPiece, flat.numel() - at));
          hasher.add(param.spec, first + at, piece.to(dtype));
        }
      },
      [&](const Param& param) {
        const bool trains = trained.names.count(param.spec.name) > 0;
        return ElementRange{0, trains ? 0 : param.spec.numel()};
      });
  check_frozen(checkpoint, hasher.hashes());
}

void check_part(const ExportRequest& request, const ModelConfig& model) {
  const bool adapted = model.adapter.kind != AdapterKind::kNone;
  const bool alone = request.part == ExportPart::kAdapter;
  if (!adapted && (alone || request.merge)) {
    throw ConfigError(request.from.string(),
                      ": this run has no adapters (model.adapter.kind: none)",
                      alone ? "; --part all exports its weights" : " to --merge");
  }
  if (alone && request.merge) {
    throw ConfigError("--merge folds the adapter into the model; --part adapter leaves it out");
  }
  if (alone && model.init == ModelInit::kRandom) {
    throw ConfigError(request.from.string(), ": --part adapter: the model below it was drawn from ",
                      "train.seed (model.init: random), so no directory holds it; --merge writes ",
                      "the whole model");
  }
  if (adapted && !alone && !request.merge) {
    throw ConfigError(request.from.string(),
                      ": this run has adapters: --merge folds them into the ",
                      "weights, --part adapter writes them alone");
  }
}

// --replace must not take what the run reads, and would have to read again.
void check_inputs_stay(const ExportRequest& request, const RunConfig& config) {
  const ModelConfig& m = config.model;
  const TowerDirs towers = tower_dirs(m);
  const std::pair<const char*, fs::path> inputs[] = {
      {"model.path", m.path},
      {"model.llm.path", m.llm.path},
      {"model.vision_tower.path", towers.vision_tower},
      {"model.convnext.path", towers.convnext},
      {"model.projector.path", m.projector.path},
      {"model.adapter.path", m.adapter.path},
      {"tokenizer", tokenizer_path(config)}};
  for (const auto& [key, path] : inputs) {
    if (path.empty()) continue;
    refuse_replacing("--out", request.out, path, cat("the run's ", key, " (", path.string(), ")"));
  }
}

// `values` in the type of `out`. fp16 ends at 65504: what would become infinite is refused.
void put_values(const std::string& name, const at::Tensor& out, const at::Tensor& values) {
  out.copy_(values);
  if (out.scalar_type() != at::kHalf || at::isfinite(out).all().item<bool>()) return;
  const at::Tensor finite = values.to(at::kFloat);
  const at::Tensor lost = at::isfinite(finite).logical_and(at::isfinite(out).logical_not());
  if (!lost.any().item<bool>()) return;
  throw CheckpointError("tensor '", name, "' has values beyond fp16's 65504 (such as ",
                        finite.masked_select(lost)[0].item<double>(),
                        "); take --dtype bf16 or fp32");
}

// The weights of a run, one after the other.
class RunWeights {
 public:
  RunWeights(const RunConfig& config, const TrainCheckpoint& checkpoint, const Trained& trained,
             at::ScalarType run_type)
      : checkpoint_(checkpoint), trained_(trained), initial_(config), run_type_(run_type) {}

  at::Tensor get(Param& param, at::ScalarType type) const {
    at::Tensor out = at::empty(param.spec.shape, type);
    const at::Tensor flat = out.view(-1);
    const auto put = [&](int64_t first, const at::Tensor& values) {
      put_values(param.spec.name, flat.narrow(0, first, values.numel()), values);
    };
    if (trained_.names.count(param.spec.name) > 0) {
      checkpoint_.read("master", param.spec.name, 0, param.spec.numel(), put);
    } else {  // rounded as the run used it
      initial_.read(param, [&](Param&, int64_t first, const at::Tensor& values) {
        put(first, values.to(run_type_));
      });
    }
    return out;
  }

  // Frozen, and never laid over by a file of an earlier run.
  bool is_of_base(const std::string& name) const {
    return trained_.names.count(name) == 0 && initial_.is_of_base(name);
  }

 private:
  const TrainCheckpoint& checkpoint_;
  const Trained& trained_;
  const InitialWeights initial_;
  const at::ScalarType run_type_;
};

// A weight with its adapter folded in.
class Merger {
 public:
  Merger(const ModelParts& parts, const RunWeights& weights) : weights_(weights) {
    for (Param* param : parts.params) by_name_[param->spec.name] = param;
    for (const Linear* linear : parts.model->decoder().linears()) {
      if (linear->lora()) adapted_[linear->weight().spec.name] = linear;
    }
  }

  at::Tensor get(Param& param, at::ScalarType type) const {
    const auto it = adapted_.find(param.spec.name);
    if (it == adapted_.end()) return weights_.get(param, type);
    const Linear& linear = *it->second;
    const at::Tensor b = part(linear.lora_b()), a = part(linear.lora_a());
    const at::Tensor sum =
        weights_.get(param, at::kFloat).addmm_(b, a, /*beta=*/1, linear.lora()->scale);
    if (sum.scalar_type() == type) return sum;
    at::Tensor out = at::empty(sum.sizes(), type);
    put_values(param.spec.name, out, sum);
    return out;
  }

 private:
  at::Tensor part(const Param& param) const {
    return weights_.get(*by_name_.at(param.spec.name), at::kFloat);
  }

  const RunWeights& weights_;
  std::map<std::string, Param*> by_name_;
  std::map<std::string, const Linear*> adapted_;
};

// Of one type only the order of sums may differ; rounding to bf16 moves logits by some 1e-2, and so
// may merging in it.
double allowed_difference(at::ScalarType run, at::ScalarType out, bool merged) {
  return run == out && (run == at::kFloat || !merged) ? 1e-5 : 0.05;
}

}  // namespace

std::optional<ExportCheck> export_run(const ExportRequest& request) {
  check_hf_target(request.out, request.directory.replace);  // before minutes of reading
  const at::NoGradGuard no_grad;
  Ranks ranks = local_ranks({});
  const TrainCheckpoint checkpoint =
      open_train_checkpoint(find_train_checkpoint(request.from), ranks);
  const ResolvedConfig resolved =
      parse_run_config(checkpoint.config_yaml(), (checkpoint.dir() / kConfigFile).string());
  const RunConfig& config = resolved.config;
  check_part(request, config.model);
  check_inputs_stay(request, config);
  const at::ScalarType run_type = run_dtype(checkpoint),
                       out_type = request.dtype.value_or(run_type);
  const ModelParts parts = describe_model(resolved);
  const Trained trained = trained_weights(parts, checkpoint);
  check_sources(config, parts, trained, checkpoint, run_type);

  const RunWeights weights(config, checkpoint, trained, run_type);
  const Merger merged(parts, weights);
  const auto value = [&](Param& param) {
    return request.merge ? merged.get(param, out_type) : weights.get(param, out_type);
  };
  const auto tokenizer = load_tokenizer(tokenizer_path(config));
  ModelDescription description{config.model, config.image, config.text};
  if (request.part == ExportPart::kAdapter) {  // model.path's own config.json may have named them
    const TowerDirs towers = tower_dirs(config.model);
    description.model.vision_tower.path = towers.vision_tower;
    description.model.convnext.path = towers.convnext;
  }
  const ModelContent content{description,       parts.params,           value,
                             *tokenizer,        llm_path(config.model), trained.vision_tower,
                             trained.hr_encoder};
  HfDirectoryOptions directory = request.directory;
  std::optional<ExportCheck> found;
  if (request.verify) {
    directory.check = [&](const fs::path& written) {
      found = verify_export(
          written, description, *tokenizer,
          [&](Param& param) { return weights.get(param, run_type); },
          request.part == ExportPart::kLlm, allowed_difference(run_type, out_type, request.merge));
    };
  }
  if (request.part == ExportPart::kAdapter) {
    write_adapter(
        request.out, content, parts.model->decoder().linears(),
        [&](const std::string& name) { return weights.is_of_base(name); }, llm_path(config.model),
        out_type, directory);
  } else {
    write_model(request.out, content, out_type, request.part == ExportPart::kLlm, directory);
  }
  log::info(cat("wrote ", request.out.string(), " from ", checkpoint.dir().string(), ": step ",
                checkpoint.step(), ", ", trained.names.size(), " trained tensors"));
  return found;
}

}  // namespace mgm
