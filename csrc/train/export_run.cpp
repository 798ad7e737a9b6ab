#include "train/export_run.h"

#include <ATen/ATen.h>

#include "assemble/initial_weights.h"
#include "assemble/model_dir.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/hf_directory.h"
#include "dist/frozen_hash.h"
#include "train/build.h"
#include "train/run_state.h"

namespace mgm {
namespace {

fs::path checkpoint_dir(const fs::path& from) {
  if (fs::exists(from / "manifest.json")) return from;
  const std::vector<int64_t> steps = list_train_checkpoints(from);
  if (steps.empty()) {
    throw CheckpointError(from.string(),
                          ": is neither a checkpoint (no manifest.json) nor a run folder with one "
                          "(no checkpoints/step_N)");
  }
  return train_checkpoint_dir(from, steps.back());
}

at::ScalarType run_dtype(const TrainCheckpoint& checkpoint, const std::string& source) {
  const std::string name = checkpoint.state.value("dtype", "");
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    if (name == at::toString(type)) return type;
  }
  throw CheckpointError(source, "/state.json: unknown dtype '", name, "'");
}

}  // namespace

void export_run(const ExportRequest& request) {
  check_hf_target(request.out, request.replace);  // before minutes of reading
  const fs::path dir = checkpoint_dir(request.from);
  const TrainCheckpoint checkpoint = read_train_checkpoint(dir);
  const ResolvedConfig resolved =
      parse_run_config(checkpoint.config_yaml, (dir / "config.yaml").string());
  const RunConfig& config = resolved.config;
  const at::ScalarType dtype = run_dtype(checkpoint, dir.string());
  const ModelParts parts = describe_model(resolved);

  const at::NoGradGuard no_grad;
  initial_weights(config, parts.params, [&](Param& param, int64_t, const at::Tensor& value) {
    param.value = value.to(dtype).reshape(param.spec.shape);
  });
  check_frozen(checkpoint, frozen_hashes(parts.params, parts.policies));
  int64_t trained = 0;
  bool vision_tower_trained = false, hr_encoder_trained = false;
  for (size_t i = 0; i < parts.params.size(); ++i) {
    if (!parts.policies[i].train) continue;
    const std::string& name = parts.params[i]->spec.name;
    const auto it = checkpoint.tensors.find("master." + name);
    if (it == checkpoint.tensors.end()) {
      throw CheckpointError(dir.string(), ": lacks the trained weight ", name);
    }
    parts.params[i]->value = it->second;
    vision_tower_trained |= name.rfind("model.vision_tower.", 0) == 0;
    hr_encoder_trained |= name.rfind("model.vision_tower_aux.", 0) == 0;
    ++trained;
  }
  constexpr int64_t kPerWeight = 3;  // the master and AdamW's two moments
  if (static_cast<int64_t>(checkpoint.tensors.size()) != kPerWeight * trained) {
    throw CheckpointError(dir.string(), ": holds ", checkpoint.tensors.size(), " tensors, but its ",
                          "config.yaml trains ", trained, " weights of ", kPerWeight, " each");
  }
  const auto tokenizer = load_tokenizer(tokenizer_path(config));
  write_model(request.out,
              {{config.model, config.image, config.text},
               parts.params,
               [](const Param& param) { return param.value; },
               *tokenizer,
               vision_tower_trained,
               hr_encoder_trained},
              request.dtype.value_or(dtype), request.llm_only, request.replace);
  log::info(cat("wrote ", request.out.string(), " from ", dir.string(), ": step ", checkpoint.step,
                ", ", trained, " trained tensors"));
}

}  // namespace mgm
