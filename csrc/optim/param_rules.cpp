#include "optim/param_rules.h"

#include <algorithm>

#include "base/strings.h"

namespace mgm {

std::vector<std::string> preset_patterns(RulePreset preset, const ModelConfig& model) {
  const std::vector<std::string> bridge = {"model.mm_projector.*", "model.vlm_uni_*"};
  std::vector<std::string> patterns;
  switch (preset) {
    case RulePreset::kNone:
      break;
    case RulePreset::kStage1:
      return bridge;
    case RulePreset::kStage2:
      patterns = bridge;
      for (const char* llm :
           {"model.embed_tokens.*", "model.layers.*", "model.norm.*", "lm_head.*"}) {
        patterns.emplace_back(llm);
      }
      break;
    case RulePreset::kOptimizeVisionTower:  // the last half of the blocks
      for (int64_t i = model.vision_tower.num_layers / 2; i < model.vision_tower.num_layers; ++i) {
        patterns.push_back(
            cat("model.vision_tower.vision_tower.vision_model.encoder.layers.", i, ".*"));
      }
      break;
    case RulePreset::kOptimizeVisionTowerAux:  // the last block of each stage, never stem or
                                               // downsample
      for (size_t s = 0; s < model.convnext.depths.size(); ++s) {
        patterns.push_back(cat("model.vision_tower_aux.vision_stages.", s, ".blocks.",
                               model.convnext.depths[s] - 1, ".*"));
      }
      break;
    case RulePreset::kAdapter:
      return {"*.lora_A.weight", "*.lora_B.weight"};
  }
  return patterns;
}

namespace {

// The parameter name that looks most like the pattern without its wildcards.
std::string nearest_name(const std::string& pattern, const std::vector<Param*>& params) {
  const std::string plain = replace_all(replace_all(pattern, "*", ""), "?", "");
  std::vector<std::string> names;
  for (const Param* param : params) names.push_back(param->spec.name);
  std::string near = closest(plain, names);
  if (!near.empty()) return near;
  size_t best = 0;
  for (const std::string& name : names) {  // else the longest common prefix
    const auto end = std::mismatch(plain.begin(), plain.end(), name.begin(), name.end()).first;
    const auto length = static_cast<size_t>(end - plain.begin());
    if (length > best) {
      best = length;
      near = name;
    }
  }
  return near;
}

}  // namespace

RuleOutcome resolve_rules(const std::vector<Param*>& params, const RunConfig& config) {
  RuleOutcome out;
  out.policies.resize(params.size());
  for (size_t r = 0; r < config.train.rules.size(); ++r) {
    const TrainRule& rule = config.train.rules[r];
    const bool preset = rule.preset != RulePreset::kNone;
    const std::vector<std::string> patterns =
        preset ? preset_patterns(rule.preset, config.model) : std::vector<std::string>{rule.match};
    int64_t matched = 0;
    for (size_t i = 0; i < params.size(); ++i) {
      const ParamSpec& spec = params[i]->spec;
      const bool hit =
          std::any_of(patterns.begin(), patterns.end(),
                      [&](const std::string& pattern) { return glob_match(pattern, spec.name); });
      if (!hit) continue;
      ++matched;
      const double decay =
          rule.weight_decay >= 0 ? rule.weight_decay : config.optimizer.weight_decay;
      out.policies[i] = {rule.train, rule.lr_scale, spec.decay ? decay : 0};
    }
    if (matched > 0) continue;
    const std::string key = cat("train.rules[", r, "].", preset ? "preset" : "match");
    const std::string near = preset ? "" : nearest_name(rule.match, params);
    out.problems.push_back(
        {key, cat("'", join(patterns, "', '"), "' matches no parameter of this model",
                  near.empty() ? "" : cat("; the nearest name is '", near, "'"))});
  }
  return out;
}

}  // namespace mgm
