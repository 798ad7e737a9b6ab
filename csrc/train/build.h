// The only wiring place: from a resolved config to the objects a run is made of.
#pragma once

#include <memory>

#include "config/reader.h"
#include "data/loader.h"
#include "dist/frozen_hash.h"
#include "dist/param_store.h"
#include "dist/process_group.h"
#include "model/mini_gemini.h"
#include "optim/lr_schedule.h"
#include "text/conversation.h"
#include "text/tokenizer.h"
#include "train/device.h"
#include "train/train_module.h"

namespace mgm {

// Everything that needs no weights: shared by `train`, `--plan` and `config check`.
struct ModelParts {
  std::unique_ptr<MiniGemini> model;
  std::vector<Param*> params;
  std::vector<ParamPolicy> policies;
};
// Throws ConfigError with the place of every train.rules / train.recompute pattern that matches
// nothing, and of train.rules under which nothing trains.
ModelParts describe_model(const ResolvedConfig& resolved);

// Throws ConfigError with the place of every path in the config where nothing is, and of
// train.rules that are not there, so that a run ends before it has begun. What an earlier stage
// writes (model.projector.path) is not looked for.
void check_inputs_exist(const ResolvedConfig& resolved);

// The chat format of text.template; throws ConfigError with the key's place.
ConversationTemplate conversation_template(const ResolvedConfig& resolved);

struct DataParts {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<AnnotationIndex> index;
  std::unique_ptr<SampleBuilder> builder;
  std::unique_ptr<Plan> plan;
  int64_t total_steps = 0;
};
DataParts open_data(const ResolvedConfig& resolved);

// Random weights that never train are a forgotten path: a problem per tower whose path is empty
// beside a pretrained language model and that is frozen, in whole or in part.
std::vector<ConfigProblem> drawn_tower_problems(const RunConfig& config, const ModelParts& parts);

// The groups this rank's parts of a run's weights live in, filled from the config's sources.
// Whole copies, where the mode has them, follow with ShardEngine::parameters_loaded. Weights that
// are held packed are bound to their parameters, whole on every rank, and hashed into `packed`.
// Throws ConfigError on drawn_tower_problems.
std::unique_ptr<ParamStore> make_store(const ResolvedConfig& resolved, const ModelParts& parts,
                                       const DeviceSetup& device, const Topology& topology,
                                       FrozenHasher& packed);

}  // namespace mgm
