#include "train/plan/planned_model.h"

#include <algorithm>

#include "base/error.h"
#include "checkpoint/adapter_file.h"
#include "types/expert_group.h"

namespace mgm {
namespace {

bool starts(const std::string& name, const char* prefix) { return name.rfind(prefix, 0) == 0; }

// The number that ends a group's name, or its block's; 0 without one.
int number_of(const std::string& group) {
  const std::string block = block_of(group);
  const std::string last = block.substr(block.rfind('.') + 1);
  const bool digits = !last.empty() && last.find_first_not_of("0123456789") == last.npos;
  return digits ? std::stoi(last) : 0;
}

UseKind kind_of(const std::string& group, bool last) {
  if (last) return UseKind::kHead;  // tied: the embedding's group again
  if (group == "model.embed_tokens") return UseKind::kEmbedding;
  if (starts(group, "model.layers.")) {
    return is_experts_group(group) ? UseKind::kExperts : UseKind::kDecoderBlock;
  }
  if (starts(group, "model.mm_projector")) return UseKind::kProjector;
  if (starts(group, "model.vlm_uni")) return UseKind::kMining;
  if (starts(group, "model.vision_tower_aux.vision_stem")) return UseKind::kConvnextStem;
  if (starts(group, "model.vision_tower_aux.")) return UseKind::kConvnextStage;
  if (group.find(".encoder.layers.") != group.npos) return UseKind::kClipBlock;
  MGM_CHECK(starts(group, "model.vision_tower."), "no plan for group ", group);
  return UseKind::kClipEmbedding;
}

RecomputePolicy policy_of(const std::vector<RecomputeRule>& rules, const std::string& group) {
  RecomputePolicy policy = RecomputePolicy::kNone;
  for (const RecomputeRule& rule : rules) {
    if (glob_match(rule.match, group)) policy = rule.policy;
  }
  return policy;
}

void add_adapter(const ParamSpec& spec, bool trains, const LlmConfig& llm, PlannedAdapters& out) {
  if (!is_adapter_weight(spec.name)) return;
  const bool expert = spec.name.find(".experts.") != spec.name.npos;
  const double share = expert ? double(llm.experts_per_token) / double(llm.num_experts) : 1;
  out.params += share * double(spec.numel());
  if (trains) out.trained += spec.numel();
  if (!spec.name.ends_with(".lora_A.weight")) return;
  out.ranks += share * double(spec.shape[0]);
  out.inputs += share * double(spec.shape[1]);
}

}  // namespace

PlannedModel plan_model(const RunConfig& config, const MiniGemini& model,
                        const std::vector<ParamPolicy>& policies) {
  PlannedModel out;
  out.config = config;
  out.geometry = model.geometry();
  const std::vector<Param*> params = model.params();
  out.sizes = group_sizes(params, policies, static_cast<int>(config.dist.expert_parallel));
  out.order = model.group_uses();
  out.on_cpu = config.train.device == DeviceKind::kCpu;
  const bool fp32 = config.train.dtype == DtypeKind::kFloat32 ||
                    (config.train.dtype == DtypeKind::kAuto && out.on_cpu);
  out.element = fp32 ? 4 : 2;
  out.reduce_element = config.dist.reduce_dtype == DtypeKind::kBfloat16 ? 2 : 4;

  bool upstream_trains = false;
  for (size_t u = 0; u < out.order.size(); ++u) {
    PlannedUse use;
    use.use = out.order[u];
    use.kind = kind_of(use.use.group, u + 1 == out.order.size());
    use.number = number_of(use.use.group);
    use.recompute = policy_of(config.train.recompute, use.use.group);
    while (out.sizes[static_cast<size_t>(use.group)].name != use.use.group) ++use.group;
    if (use.kind == UseKind::kConvnextStage) {
      use.blocks_train.assign(
          static_cast<size_t>(config.model.convnext.depths[static_cast<size_t>(use.number)]),
          false);
    }
    const std::string block = use.use.group + ".blocks.";
    for (size_t i = 0; i < params.size(); ++i) {
      const ParamSpec& spec = params[i]->spec;
      if (spec.group != use.use.group) continue;
      use.params += spec.numel();
      add_adapter(spec, policies[i].train, config.model.llm, use.adapters);
      if (spec.format != WeightFormat::kDense) {
        use.largest_packed = std::max(use.largest_packed, spec.numel());
      }
      if (!policies[i].train) continue;
      use.trained += spec.numel();
      if (!use.blocks_train.empty() && starts(spec.name, block.c_str())) {
        use.blocks_train[static_cast<size_t>(std::stoi(spec.name.substr(block.size())))] = true;
      }
    }
    use.upstream = upstream_trains && !use.use.source;
    upstream_trains = upstream_trains || use.trains();
    out.uses.push_back(std::move(use));
  }
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i]->spec;
    out.params += spec.numel();
    if (policies[i].train) out.trained += spec.numel();
    if (spec.format == WeightFormat::kDense) continue;
    out.packed += double(packed_bytes(spec.format, spec.numel(), spec.shape[0]));
  }
  return out;
}

PlannedModel PlannedModel::with_decoder_recompute(RecomputePolicy policy) const {
  PlannedModel out = *this;
  for (PlannedUse& use : out.uses) {
    if (use.kind == UseKind::kDecoderBlock || use.kind == UseKind::kExperts) {
      use.recompute = policy;
    }
  }
  return out;
}

BatchShape even_shape(const PlannedModel& model, int64_t samples, int64_t tokens, int64_t images) {
  const int64_t visual = images * model.geometry.tokens();
  const int64_t length = std::max(tokens, visual + 1);
  return {samples, samples * length, samples * images,
          samples * std::max<int64_t>(tokens - visual, 1), length};
}

int64_t assumed_tokens(const PlannedModel& model) {
  const RunConfig& config = model.config;
  const int64_t text = config.text.template_name == "plain" ? 32 : 320;
  return std::min(model.geometry.tokens() + text, config.text.max_length);
}

}  // namespace mgm
