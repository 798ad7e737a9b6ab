// What the decoder architectures differ in and no config.json can change: one row per value of
// LlmArch. What a config.json may change (biases, windows, soft caps, rotary scaling, ...) is a
// field of LlmConfig. Source: the modeling_*.py of the same name in Hugging Face transformers 4.57.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.h"

namespace mgm {

struct LlmTraits {
  LlmArch arch = LlmArch::kLlama;
  const char* class_name = "";       // HF class without ForCausalLM, e.g. "Qwen2"
  bool unit_norm = false;            // RMSNorm multiplies by 1 + w
  bool scale_embeddings = false;     // what enters block 0 is times sqrt(hidden_size)
  bool post_norms = false;           // norms behind attention and MLP too
  bool qk_norm = false;              // RMSNorm of every query and key head before the rotation
  bool qkv_bias = false;             // biases of q, k and v whatever attention_bias says
  bool optional_biases = false;      // attention_bias: of q, k, v and o
  bool fused_projections = false;    // one qkv_proj, one gate_up_proj
  bool experts = false;              // the MLP is a mixture: num_experts > 0
  bool alternating_windows = false;  // without layer_types: windows in layers 0, 2, 4, ...
};

const std::vector<LlmTraits>& known_llms();
const LlmTraits& llm_traits(LlmArch arch);

// Exact head width of a config (head_dim, or hidden_size / num_heads).
int64_t head_width(const LlmConfig& config);

// Tokens a query of this layer sees, itself included; 0: all before it.
int64_t layer_window(const LlmConfig& config, int64_t layer);

// Appends what contradicts itself in rotary scaling, windows, experts and biases.
void check_llm(const LlmConfig& config, std::vector<ConfigProblem>& problems);

inline constexpr const char* kSlidingLayer = "sliding_attention";
inline constexpr const char* kFullLayer = "full_attention";

}  // namespace mgm
