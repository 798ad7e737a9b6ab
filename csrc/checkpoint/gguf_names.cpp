#include "checkpoint/gguf_names.h"

#include <algorithm>
#include <string_view>

#include "base/strings.h"

namespace mgm {
namespace {

struct Rule {
  std::string_view architecture;  // the one it is for; empty for all others
  std::string_view part;          // llama.cpp, behind "blk.N."
  std::string_view name;          // Hugging Face, behind "model.layers.N."
};

// The first that fits counts.
constexpr Rule kRules[] = {
    {"gemma2", "ffn_norm", "pre_feedforward_layernorm"},
    {"gemma2", "post_attention_norm", "post_attention_layernorm"},
    {"gemma2", "post_ffw_norm", "post_feedforward_layernorm"},
    {"phi3", "attn_qkv", "self_attn.qkv_proj"},
    {"phi3", "ffn_up", "mlp.gate_up_proj"},
    {"qwen3", "attn_q_norm", "self_attn.q_norm"},
    {"qwen3", "attn_k_norm", "self_attn.k_norm"},
    {"llama", "ffn_gate_inp", "block_sparse_moe.gate"},
    {"llama", "ffn_gate_exps", "block_sparse_moe.experts.{}.w1"},
    {"llama", "ffn_down_exps", "block_sparse_moe.experts.{}.w2"},
    {"llama", "ffn_up_exps", "block_sparse_moe.experts.{}.w3"},
    {"", "attn_norm", "input_layernorm"},
    {"", "attn_q", "self_attn.q_proj"},
    {"", "attn_k", "self_attn.k_proj"},
    {"", "attn_v", "self_attn.v_proj"},
    {"", "attn_output", "self_attn.o_proj"},
    {"", "ffn_norm", "post_attention_layernorm"},
    {"", "ffn_gate", "mlp.gate_proj"},
    {"", "ffn_up", "mlp.up_proj"},
    {"", "ffn_down", "mlp.down_proj"},
};

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 7 &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// "ffn_gate.3", an expert of files older than stacked experts.
std::optional<std::string> single_expert(const std::vector<std::string>& parts) {
  if (parts.size() != 5 || !is_number(parts[3])) return std::nullopt;
  for (const auto& [part, name] :
       {std::pair{"ffn_gate", "w1"}, {"ffn_down", "w2"}, {"ffn_up", "w3"}}) {
    if (parts[2] == part) return cat("block_sparse_moe.experts.", parts[3], ".", name);
  }
  return std::nullopt;
}

GgufUndo undo_of(const std::string& architecture, const std::string& part) {
  if (architecture == "llama" && part == "attn_q") return GgufUndo::kRowsOfHeads;
  if (architecture == "llama" && part == "attn_k") return GgufUndo::kRowsOfKvHeads;
  const bool gemma = architecture == "gemma" || architecture == "gemma2";
  const bool norm = part.size() >= 5 && part.compare(part.size() - 5, 5, "_norm") == 0;
  return gemma && norm ? GgufUndo::kPlusOne : GgufUndo::kNone;
}

}  // namespace

const std::vector<std::string>& gguf_architectures() {
  static const std::vector<std::string> known = {"llama", "gemma", "gemma2",
                                                 "qwen2", "qwen3", "phi3"};
  return known;
}

std::optional<GgufTarget> map_gguf_name(const std::string& architecture, const std::string& name) {
  if (name == "token_embd.weight") return GgufTarget{"model.embed_tokens.weight"};
  if (name == "output.weight") return GgufTarget{"lm_head.weight"};
  if (name == "output_norm.weight") {
    return GgufTarget{"model.norm.weight", false, undo_of(architecture, "output_norm")};
  }
  const std::vector<std::string> parts = split(name, '.');
  if (parts.size() < 4 || parts[0] != "blk" || !is_number(parts[1])) return std::nullopt;
  const std::string &kind = parts.back(), layer = cat("model.layers.", parts[1], ".");
  if (kind != "weight" && kind != "bias") return std::nullopt;
  if (architecture == "llama") {
    if (const auto expert = single_expert(parts)) return GgufTarget{layer + *expert + "." + kind};
  }
  if (parts.size() != 4) return std::nullopt;
  for (const Rule& rule : kRules) {
    if (rule.part != parts[2]) continue;
    if (!rule.architecture.empty() && rule.architecture != architecture) continue;
    const bool experts = rule.name.find("{}") != rule.name.npos;
    return GgufTarget{cat(layer, rule.name, ".", kind), experts, undo_of(architecture, parts[2])};
  }
  return std::nullopt;
}

bool is_gguf_config_tensor(const std::string& name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" ||
         name == "rope_factors_short.weight";
}

}  // namespace mgm
