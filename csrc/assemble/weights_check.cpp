#include "assemble/weights_check.h"

#include <algorithm>

#include "assemble/hf_config.h"
#include "assemble/inspect.h"
#include "assemble/published_weights.h"
#include "checkpoint/weight_loader.h"
#include "model/decoder.h"
#include "model/mini_gemini.h"

namespace mgm {
namespace {

// A tower of which the weights hold nothing: its directory has it.
bool lies_beside(const TensorSource& weights, const Param& param) {
  for (const char* tower : {"model.vision_tower.", "model.vision_tower_aux."}) {
    if (param.spec.name.starts_with(tower)) return !any_name(weights, tower);
  }
  return false;
}

}  // namespace

void check_weights_of(const Json& config, const std::string& source, const TensorSource& weights) {
  const auto of_language_model = [](const std::string& name) {
    return part_of(name) == "language model";
  };
  const std::vector<std::string>& names = weights.names();
  if (std::none_of(names.begin(), names.end(), of_language_model)) return;
  LoadOptions options;
  if (config.contains("mm_vision_tower")) {
    const ModelDescription description = read_hf_config(config, source);
    options.may_lack = [&](const Param& param) { return lies_beside(weights, param); };
    compare_weights(MiniGemini(description.model, description.image).params(), weights, options);
  } else {
    LlmConfig llm;
    read_llm_config(config, source, llm);
    compare_weights(Decoder(llm).params(), weights, options);
  }
}

}  // namespace mgm
