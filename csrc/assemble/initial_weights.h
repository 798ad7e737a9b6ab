// The weights a run starts from: the directories its config names, or random values from
// train.seed.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "checkpoint/weight_loader.h"
#include "config/run_config.h"
#include "types/param.h"

namespace mgm {

// Hands the wanted elements of every parameter (`range`, checkpoint/weight_loader.h; not set: all)
// to `sink`, each exactly once, as CPU tensors of any float dtype: one piece of what is read,
// several of a large parameter that is drawn. Reads and draws nothing else.
//
// model.init random: every value is a function of (train.seed, parameter name, element).
// model.projector.path and model.adapter.path still override what they hold. model.init pretrained:
// model.path (a complete model; towers it lacks from published_weights.h), else model.llm.path,
// model.vision_tower.path and model.convnext.path; model.projector.path and model.adapter.path on
// top. Drawn from train.seed is a whole part that no file has: projector and mining heads, if
// neither model.path nor model.projector.path is set, as in stage 1; adapters without
// model.adapter.path; a tower without a path (is_drawn_tower). Anything else that is missing, and
// a tensor that nobody takes, is a CheckpointError with both lists.
void initial_weights(const RunConfig& config, const std::vector<Param*>& params,
                     const WeightSink& sink,
                     const std::function<ElementRange(const Param&)>& range = {});

// Whether `name` belongs to a vision tower that a pretrained language model gets without weights:
// its path is empty, so what model.projector.path does not hold is drawn from train.seed.
bool is_drawn_tower(const ModelConfig& model, const std::string& name);

// The same values for one parameter after another. Checks nothing: initial_weights does.
class InitialWeights {
 public:
  explicit InitialWeights(const RunConfig& config);
  // Pieces begin at multiples of 2^20 elements. What is read is a view of the mapped file.
  void read(Param& param, const WeightSink& sink) const;
  // Whether the value is one of model.path, or of model.llm.path and its towers: neither drawn nor
  // of model.projector.path or model.adapter.path.
  bool is_of_base(const std::string& name) const;

 private:
  std::optional<OverlaySource> source_;
  size_t base_layers_;
  uint64_t seed_;
};

}  // namespace mgm
