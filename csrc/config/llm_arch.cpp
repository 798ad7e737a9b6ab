#include "config/llm_arch.h"

#include "base/error.h"
#include "base/strings.h"

namespace mgm {
namespace {

class Problems {
 public:
  explicit Problems(std::vector<ConfigProblem>& out) : out_(out) {}

  template <class... Args>
  void expect(bool ok, const char* key, const Args&... message) {
    if (!ok) out_.push_back({cat("model.llm.", key), cat(message...)});
  }

 private:
  std::vector<ConfigProblem>& out_;
};

void check_longrope(const LlmConfig& llm, int64_t rotated, Problems& problems) {
  const RopeScalingConfig& rope = llm.rope_scaling;
  problems.expect(static_cast<int64_t>(rope.short_factor.size()) == rotated / 2,
                  "rope_scaling.short_factor", rope.short_factor.size(), " numbers for ",
                  rotated / 2, " frequencies");
  for (const double factor : rope.short_factor) {
    problems.expect(factor > 0, "rope_scaling.short_factor", "must be above 0, got ", factor);
  }
  problems.expect(llm.max_positions <= rope.original_max_positions, "max_positions",
                  llm.max_positions, " is above rope_scaling.original_max_positions ",
                  rope.original_max_positions, ": the long factors of longrope are not supported");
}

void check_rope(const LlmConfig& llm, Problems& problems) {
  const RopeScalingConfig& rope = llm.rope_scaling;
  const auto rotated = static_cast<int64_t>(double(head_width(llm)) * llm.rotary_fraction);
  const bool whole = llm.rotary_fraction == 1;  // then head_dim is to blame for an odd width
  problems.expect(whole || (rotated > 0 && rotated % 2 == 0), "rotary_fraction",
                  llm.rotary_fraction, " of a head of ", head_width(llm), " is ", rotated,
                  "; needs an even number");
  if (rope.type == RopeType::kLlama3 || rope.type == RopeType::kLongrope) {
    problems.expect(rope.original_max_positions > 0, "rope_scaling.original_max_positions",
                    "llama3 and longrope need it");
  }
  if (rope.type == RopeType::kLlama3) {
    problems.expect(rope.high_freq_factor > rope.low_freq_factor && rope.low_freq_factor > 0,
                    "rope_scaling.high_freq_factor", "needs 0 < low_freq_factor ",
                    rope.low_freq_factor, " < high_freq_factor ", rope.high_freq_factor);
  }
  if (rope.type == RopeType::kLongrope) check_longrope(llm, rotated, problems);
}

}  // namespace

const std::vector<LlmTraits>& known_llms() {
  static const std::vector<LlmTraits> known = [] {
    std::vector<LlmTraits> all;
    const auto add = [&](LlmArch arch, const char* name) -> LlmTraits& {
      all.push_back({});
      all.back().arch = arch;
      all.back().class_name = name;
      return all.back();
    };
    add(LlmArch::kLlama, "Llama").optional_biases = true;
    LlmTraits& gemma = add(LlmArch::kGemma, "Gemma");
    gemma.unit_norm = gemma.scale_embeddings = gemma.optional_biases = true;
    add(LlmArch::kMixtral, "Mixtral").experts = true;
    add(LlmArch::kMistral, "Mistral");
    LlmTraits& gemma2 = add(LlmArch::kGemma2, "Gemma2");
    gemma2.unit_norm = gemma2.scale_embeddings = gemma2.post_norms = true;
    gemma2.alternating_windows = gemma2.optional_biases = true;
    add(LlmArch::kQwen2, "Qwen2").qkv_bias = true;
    LlmTraits& qwen3 = add(LlmArch::kQwen3, "Qwen3");
    qwen3.qk_norm = qwen3.optional_biases = true;
    add(LlmArch::kPhi3, "Phi3").fused_projections = true;
    return all;
  }();
  return known;
}

const LlmTraits& llm_traits(LlmArch arch) {
  for (const LlmTraits& traits : known_llms()) {
    if (traits.arch == arch) return traits;
  }
  throw InternalError("no traits of architecture ", static_cast<int>(arch));
}

int64_t head_width(const LlmConfig& config) {
  return config.head_dim > 0 ? config.head_dim : config.hidden_size / config.num_heads;
}

int64_t layer_window(const LlmConfig& config, int64_t layer) {
  if (config.sliding_window == 0) return 0;
  const bool sliding = config.layer_types.empty()
                           ? !llm_traits(config.arch).alternating_windows || layer % 2 == 0
                           : config.layer_types.at(static_cast<size_t>(layer)) == kSlidingLayer;
  return sliding ? config.sliding_window : 0;
}

void check_llm(const LlmConfig& llm, std::vector<ConfigProblem>& out) {
  Problems problems(out);
  check_rope(llm, problems);
  const LlmTraits& traits = llm_traits(llm.arch);
  const std::string arch = to_lower(traits.class_name);
  if (traits.experts) {
    problems.expect(llm.num_experts >= llm.experts_per_token, "num_experts", llm.num_experts,
                    " experts for arch ", arch, "; needs at least ", llm.experts_per_token);
  } else {
    problems.expect(llm.num_experts == 0, "num_experts", llm.num_experts, " experts, but arch ",
                    arch, " has none; mixtral has");
  }
  const auto types = static_cast<int64_t>(llm.layer_types.size());
  problems.expect(types == 0 || types == llm.num_layers, "layer_types", types, " types for ",
                  llm.num_layers, " layers");
  for (const std::string& type : llm.layer_types) {
    problems.expect(type == kSlidingLayer || type == kFullLayer, "layer_types", "'", type,
                    "' is not ", kSlidingLayer, " or ", kFullLayer);
  }
  problems.expect(traits.optional_biases || !llm.attention_bias, "attention_bias", "arch ", arch,
                  traits.qkv_bias ? " has them for q, k and v alone" : " has no such biases");
  problems.expect(llm.arch == LlmArch::kLlama || !llm.mlp_bias, "mlp_bias", "the MLP of arch ",
                  arch, " has no biases");
}

}  // namespace mgm
