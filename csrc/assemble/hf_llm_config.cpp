// The language model's part of a config.json. Defaults of absent fields are those of the
// configuration_*.py of each architecture in Hugging Face transformers 4.57.
#include <algorithm>
#include <cmath>
#include <utility>

#include "assemble/hf_config.h"
#include "assemble/json_fields.h"
#include "base/log_once.h"
#include "config/llm_arch.h"

namespace mgm {
namespace {

std::string type_of(const LlmTraits& traits) { return to_lower(traits.class_name); }

std::string known_types() {
  std::vector<std::string> types;
  for (const LlmTraits& traits : known_llms()) types.push_back(type_of(traits));
  return join(types, ", ");
}

// "mgm_gemma", "mini_gemini_gemma" and "gemma" are the same decoder; mgm alone is llama's.
const LlmTraits* find_type(const std::string& model_type) {
  for (const LlmTraits& traits : known_llms()) {
    const std::string type = type_of(traits);
    for (const char* prefix : {"", "mgm_", "mini_gemini_"}) {
      if (model_type == prefix + type) return &traits;
    }
  }
  const bool plain = model_type == "mgm" || model_type == "mini_gemini";
  return plain ? &llm_traits(LlmArch::kLlama) : nullptr;
}

// "GemmaForCausalLM", "MGMGemmaForCausalLM", "MiniGeminiGemmaForCausalLM".
const LlmTraits* find_class(const std::string& name) {
  for (const LlmTraits& traits : known_llms()) {
    for (const char* prefix : {"", "MGM", "MiniGemini"}) {
      if (name == cat(prefix, traits.class_name, "ForCausalLM")) return &traits;
    }
  }
  return nullptr;
}

LlmArch read_arch(const JsonFields& f) {
  const auto type = f.get_or<std::string>("model_type", "");
  const auto classes = f.get_or<std::vector<std::string>>("architectures", {});
  const LlmTraits* by_type = find_type(type);
  const LlmTraits* by_class = classes.empty() ? nullptr : find_class(classes.front());
  if (by_type && by_class && by_type != by_class) {
    throw CheckpointError(f.source(), ": model_type '", type, "' and architectures '",
                          classes.front(), "' are different language models");
  }
  if (by_type) return by_type->arch;
  if (type.empty() && by_class) return by_class->arch;
  throw CheckpointError(f.source(), ": model_type '", type, "'",
                        classes.empty() ? "" : cat(" (", classes.front(), ")"),
                        " is not supported; known: ", known_types(),
                        " and their mgm and mini_gemini forms");
}

// What a class of transformers takes where the file says nothing.
struct Defaults {
  int64_t kv_heads, max_positions;  // kv_heads 0: as many as heads
  double norm_eps;
};

Defaults defaults_of(LlmArch arch) {
  switch (arch) {
    case LlmArch::kMistral:
      return {8, 131072, 1e-6};
    case LlmArch::kMixtral:
      return {8, 131072, 1e-5};
    case LlmArch::kQwen2:
    case LlmArch::kQwen3:
      return {32, 32768, 1e-6};
    case LlmArch::kGemma:
      return {16, 8192, 1e-6};
    case LlmArch::kGemma2:
      return {4, 8192, 1e-6};
    case LlmArch::kPhi3:
      return {0, 4096, 1e-5};
    default:
      return {0, 2048, 1e-6};
  }
}

Activation read_activation(const JsonFields& f, const LlmConfig& llm) {
  const bool gemma = llm_traits(llm.arch).unit_norm;
  const char *key = "hidden_act", *other = "hidden_activation";
  if (llm.arch == LlmArch::kGemma2) std::swap(key, other);
  const auto name = f.get_or<std::string>(key, gemma ? "gelu_pytorch_tanh" : "silu");
  // Some published Gemmas name both forms of GELU.
  if (gemma && f.has(other) && f.get<std::string>(other) != name) {
    log::warn_once(cat(f.source(), ": ", key, " '", name, "' counts, as in transformers, not ",
                       other, " '", f.get<std::string>(other),
                       "'; model.llm.activation of a training config decides otherwise"));
  }
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  throw CheckpointError(f.source(), ": ", key, " '", name,
                        "' is not supported; known: silu, gelu, gelu_pytorch_tanh");
}

[[noreturn]] void refuse_rope(const JsonFields& scaling, const std::string& why) {
  throw CheckpointError(scaling.source(), ": ", why);
}

// transformers 4 has original_max_position_embeddings of longrope beside rope_scaling and looks at
// no other; 5 has it in rope_parameters.
void read_longrope(const JsonFields& f, const JsonFields& scaling, bool newer, LlmConfig& llm) {
  RopeScalingConfig& rope = llm.rope_scaling;
  scaling.read("short_factor", rope, rope.short_factor);
  scaling.read("long_factor", rope, rope.long_factor);
  scaling.read_or("attention_factor", rope, rope.attention_factor, 0.0);
  const char* kOriginal = "original_max_position_embeddings";
  const bool phi3 = llm.arch == LlmArch::kPhi3;
  const JsonFields& place = newer && scaling.has(kOriginal) ? scaling : f;
  place.read_or(kOriginal, rope, rope.original_max_positions,
                phi3 ? int64_t{4096} : llm.max_positions);
  const int64_t original = rope.original_max_positions;
  if (original == 0) {
    refuse_rope(place, cat("field '", kOriginal, "' is 0, but longrope needs it"));
  }
  if (scaling.has(kOriginal) && scaling.get<int64_t>(kOriginal) != original) {
    refuse_rope(scaling, cat(kOriginal, " ", scaling.get<int64_t>(kOriginal),
                             " is not read here by transformers, which takes ", original,
                             "; write it beside rope_scaling, at the top of the file"));
  }
  if (phi3 || place.has(kOriginal)) {
    rope.factor = std::max(1.0, double(llm.max_positions) / double(original));
    if (newer && scaling.has("factor") && scaling.get<double>("factor") != rope.factor) {
      refuse_rope(scaling, cat("factor ", scaling.get<double>("factor"), " is not ", rope.factor,
                               ", max_position_embeddings / ", kOriginal, "; make them agree"));
    }
  } else if (scaling.has("factor") || rope.attention_factor == 0) {
    scaling.read("factor", rope, rope.factor);
  }
  // Longer sequences take the long factors, also for the keys that are in a cache already.
  llm.max_positions = std::min(llm.max_positions, original);
}

std::string read_rope_type(const JsonFields& scaling, LlmArch arch) {
  const auto newer = scaling.get_or<std::string>("rope_type", "");
  auto older = scaling.get_or<std::string>("type", "");
  // Early Phi-3 configs name longrope so.
  if (arch == LlmArch::kPhi3 && (older == "su" || older == "yarn")) older = "longrope";
  if (!older.empty() && !newer.empty() && older != newer) {
    refuse_rope(scaling, cat("type '", older, "' and rope_type '", newer,
                             "' contradict each other; leave the right one"));
  }
  if (!older.empty() || !newer.empty()) return older.empty() ? newer : older;
  for (const auto& [key, value] : scaling.json().items()) {
    if (key == "rope_theta" || key == "partial_rotary_factor") continue;
    refuse_rope(scaling, cat("has ", key, " but no rope_type; name it, \"linear\" for example"));
  }
  return "default";
}

// transformers 4 has rope_theta and rope_scaling, 5 one object rope_parameters.
void read_rope(const JsonFields& f, LlmConfig& llm) {
  const double theta = llm.arch == LlmArch::kMixtral ? 1e6 : 1e4;
  f.read_or("rope_theta", llm, llm.rope_theta, theta);
  f.read_or("partial_rotary_factor", llm, llm.rotary_fraction, 1.0);
  llm.rope_scaling = {};
  const bool newer = f.has("rope_parameters");
  const char* key = newer ? "rope_parameters" : "rope_scaling";
  if (newer && f.has("rope_scaling") && f.get<Json>("rope_scaling") != f.get<Json>(key)) {
    refuse_rope(f, "rope_scaling and rope_parameters contradict each other; leave the right one");
  }
  if (f.has(key)) {
    const JsonFields scaling = f.sub(key);
    const double beside = llm.rope_theta;
    scaling.read_or("rope_theta", llm, llm.rope_theta, beside);
    if ((!newer || f.has("rope_theta")) && llm.rope_theta != beside) {
      refuse_rope(scaling, cat("rope_theta ", llm.rope_theta, " contradicts rope_theta ", beside,
                               " beside it; leave the right one"));
    }
    scaling.read_or("partial_rotary_factor", llm, llm.rotary_fraction, llm.rotary_fraction);
    RopeScalingConfig& rope = llm.rope_scaling;
    const std::string type = read_rope_type(scaling, llm.arch);
    if (type == "linear" || type == "llama3") {
      rope.type = type == "linear" ? RopeType::kLinear : RopeType::kLlama3;
      scaling.read("factor", rope, rope.factor);
    } else if (type == "longrope") {
      rope.type = RopeType::kLongrope;
      read_longrope(f, scaling, newer, llm);
    } else if (type != "default") {
      refuse_rope(scaling, cat("rope type '", type,
                               "' is not supported; known: default, linear, llama3, longrope"));
    }
    if (type == "llama3") {
      scaling.read("low_freq_factor", rope, rope.low_freq_factor);
      scaling.read("high_freq_factor", rope, rope.high_freq_factor);
      scaling.read("original_max_position_embeddings", rope, rope.original_max_positions);
    }
  }
  if (llm.rotary_fraction != 1 && llm.arch != LlmArch::kPhi3) {
    throw CheckpointError(f.source(), ": partial_rotary_factor ", llm.rotary_fraction,
                          " is not supported for ", type_of(llm_traits(llm.arch)));
  }
}

void read_windows(const JsonFields& f, LlmConfig& llm) {
  const bool qwen = llm.arch == LlmArch::kQwen2 || llm.arch == LlmArch::kQwen3;
  const bool windows = llm.arch == LlmArch::kMistral || llm.arch == LlmArch::kMixtral ||
                       llm.arch == LlmArch::kGemma2 || llm.arch == LlmArch::kPhi3 ||
                       (qwen && f.get_or<bool>("use_sliding_window", false));
  llm.sliding_window = 0;
  llm.layer_types.clear();
  const bool named = (qwen || llm.arch == LlmArch::kGemma2) && f.has("layer_types");
  if (named) llm.layer_types = f.get<std::vector<std::string>>("layer_types");
  const bool by_default = llm.arch != LlmArch::kMixtral && llm.arch != LlmArch::kPhi3;
  if (windows) {
    f.read_nullable("sliding_window", llm, llm.sliding_window, int64_t{by_default ? 4096 : 0});
  }
  if (llm.sliding_window == 0) {
    for (const std::string& type : llm.layer_types) {
      if (type == kFullLayer) continue;
      throw CheckpointError(f.source(), ": layer_types has ", shown(type), ", but ",
                            windows ? "sliding_window" : "use_sliding_window",
                            " is not set; set it, or name ", kFullLayer, " for every layer");
    }
    llm.layer_types.clear();
  } else if (qwen && !named) {
    const auto first = f.get_or<int64_t>("max_window_layers", 28);
    for (int64_t i = 0; i < llm.num_layers; ++i) {
      llm.layer_types.push_back(i >= first ? kSlidingLayer : kFullLayer);
    }
  }
}

void refuse_dropout(const JsonFields& f) {
  for (const char* key :
       {"attention_dropout", "resid_pdrop", "embd_pdrop", "router_jitter_noise"}) {
    if (f.get_or<double>(key, 0) == 0) continue;
    throw CheckpointError(f.source(), ": ", key, " ", f.get<double>(key),
                          " is not supported: the language model has no dropout; set it to 0");
  }
}

// transformers packs weights while it loads them, mgm where it is told to.
void refuse_quantization(const JsonFields& f) {
  if (!f.has("quantization_config") || f.get<Json>("quantization_config").empty()) return;
  const JsonFields q = f.sub("quantization_config");
  throw CheckpointError(
      q.source(), " (quant_method '", q.get_or<std::string>("quant_method", "unknown"),
      "') is not supported: weights are used as they are stored. Take the model that is not "
      "quantised; if these weights are it (bitsandbytes can quantise on loading), remove the "
      "field and set model.llm.quantize, or --quantize, to nf4 or int8");
}

void write_rope(const LlmConfig& llm, OrderedJson& j) {
  const RopeScalingConfig& rope = llm.rope_scaling;
  j["rope_theta"] = llm.rope_theta;
  OrderedJson& scaling = j["rope_scaling"];
  scaling = nullptr;
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      scaling = {{"rope_type", "linear"}, {"factor", rope.factor}};
      break;
    case RopeType::kLlama3:
      scaling = {{"rope_type", "llama3"},
                 {"factor", rope.factor},
                 {"low_freq_factor", rope.low_freq_factor},
                 {"high_freq_factor", rope.high_freq_factor},
                 {"original_max_position_embeddings", rope.original_max_positions}};
      break;
    case RopeType::kLongrope:
      // Exactly these keys: transformers refuses others in Phi-3's.
      scaling = {{"type", "longrope"},
                 {"short_factor", rope.short_factor},
                 {"long_factor", rope.long_factor}};
      if (rope.attention_factor > 0) scaling["attention_factor"] = rope.attention_factor;
      j["max_position_embeddings"] = rope.original_max_positions;
      if (const double longest = rope.factor * double(rope.original_max_positions);
          std::abs(longest - std::round(longest)) > 1e-9 * longest) {
        scaling["factor"] = rope.factor;  // no ratio of two lengths
      } else {
        j["original_max_position_embeddings"] = rope.original_max_positions;
        j["max_position_embeddings"] = std::llround(longest);
      }
      break;
  }
  if (llm.rotary_fraction != 1) j["partial_rotary_factor"] = llm.rotary_fraction;
}

void write_windows(const LlmConfig& llm, OrderedJson& j) {
  const bool qwen = llm.arch == LlmArch::kQwen2 || llm.arch == LlmArch::kQwen3;
  if (qwen) j["use_sliding_window"] = llm.sliding_window > 0;
  if (llm.arch == LlmArch::kLlama || llm.arch == LlmArch::kGemma) return;
  j["sliding_window"] = llm.sliding_window > 0 ? OrderedJson(llm.sliding_window) : nullptr;
  if (!llm.layer_types.empty()) j["layer_types"] = llm.layer_types;
}

const char* activation_name(Activation activation) {
  if (activation == Activation::kSilu) return "silu";
  return activation == Activation::kGelu ? "gelu" : "gelu_pytorch_tanh";
}

OrderedJson id_or_null(int64_t id) { return id >= 0 ? OrderedJson(id) : OrderedJson(nullptr); }
OrderedJson cap_or_null(double cap) { return cap > 0 ? OrderedJson(cap) : OrderedJson(nullptr); }

}  // namespace

void check_described(RunConfig config, const std::string& source,
                     const std::vector<std::string>& sections) {
  for (const ConfigProblem& problem : resolve_and_check(config)) {
    for (const std::string& section : sections) {
      if (problem.key.rfind(section, 0) != 0) continue;
      throw CheckpointError(source, ": describes a model that cannot be run: ", problem.key, ": ",
                            problem.message);
    }
  }
}

OrderedJson to_llm_config(const LlmConfig& llm, const SpecialIds& ids, const std::string& dtype) {
  const LlmTraits& traits = llm_traits(llm.arch);
  OrderedJson j;
  j["architectures"] = {cat(traits.class_name, "ForCausalLM")};
  j["model_type"] = type_of(traits);
  j["hidden_size"] = llm.hidden_size;
  j["intermediate_size"] = llm.intermediate_size;
  j["num_hidden_layers"] = llm.num_layers;
  j["num_attention_heads"] = llm.num_heads;
  j["num_key_value_heads"] = llm.num_kv_heads;
  if (llm.head_dim > 0 || traits.qk_norm || traits.unit_norm) j["head_dim"] = head_width(llm);
  j["vocab_size"] = llm.vocab_size;
  j["max_position_embeddings"] = llm.max_positions;
  j["rms_norm_eps"] = llm.norm_eps;
  write_rope(llm, j);
  j["hidden_act"] = activation_name(llm.activation);
  if (traits.unit_norm) j["hidden_activation"] = activation_name(llm.activation);
  j["attention_bias"] = llm.attention_bias;
  if (llm.mlp_bias) j["mlp_bias"] = true;
  j["tie_word_embeddings"] = llm.tie_embeddings;
  write_windows(llm, j);
  if (llm.arch == LlmArch::kGemma2) {
    const double scalar = llm.query_scalar > 0 ? llm.query_scalar : double(head_width(llm));
    j["query_pre_attn_scalar"] = scalar;
    j["attn_logit_softcapping"] = cap_or_null(llm.attention_softcap);
    j["final_logit_softcapping"] = cap_or_null(llm.final_softcap);
  }
  if (llm.num_experts > 0) {
    j["num_local_experts"] = llm.num_experts;
    j["num_experts_per_tok"] = llm.experts_per_token;
    j["output_router_logits"] = llm.router_aux_loss > 0;
    j["router_aux_loss_coef"] = llm.router_aux_loss;
  }
  j["bos_token_id"] = id_or_null(ids.bos);
  j["eos_token_id"] = id_or_null(ids.eos);
  j["pad_token_id"] = id_or_null(ids.pad);
  j["torch_dtype"] = dtype;
  j["use_cache"] = true;
  return j;
}

void read_llm_config(const Json& json, const std::string& source, LlmConfig& llm) {
  const JsonFields f(json, source);
  llm.arch = read_arch(f);
  const LlmTraits& traits = llm_traits(llm.arch);
  f.read("vocab_size", llm, llm.vocab_size);
  f.read("hidden_size", llm, llm.hidden_size);
  f.read("intermediate_size", llm, llm.intermediate_size);
  f.read("num_hidden_layers", llm, llm.num_layers);
  f.read("num_attention_heads", llm, llm.num_heads);
  const Defaults defaults = defaults_of(llm.arch);
  const bool as_heads = defaults.kv_heads == 0 || json.contains("num_key_value_heads");  // null
  f.read_or("num_key_value_heads", llm, llm.num_kv_heads,
            as_heads ? llm.num_heads : defaults.kv_heads);
  const int64_t default_width = traits.unit_norm ? 256 : traits.qk_norm ? 128 : 0;
  f.read_or("head_dim", llm, llm.head_dim, default_width);
  f.read_or("rms_norm_eps", llm, llm.norm_eps, defaults.norm_eps);
  f.read_or("max_position_embeddings", llm, llm.max_positions, defaults.max_positions);
  llm.tie_embeddings = f.get_or<bool>("tie_word_embeddings", traits.unit_norm);
  llm.activation = read_activation(f, llm);
  read_rope(f, llm);
  read_windows(f, llm);
  refuse_quantization(f);
  refuse_dropout(f);
  // The other classes of transformers do not look at them.
  llm.attention_bias = traits.optional_biases && f.get_or<bool>("attention_bias", false);
  llm.mlp_bias = llm.arch == LlmArch::kLlama && f.get_or<bool>("mlp_bias", false);
  llm.query_scalar = llm.attention_softcap = llm.final_softcap = 0;
  if (llm.arch == LlmArch::kGemma2) {
    f.read_or("query_pre_attn_scalar", llm, llm.query_scalar, 256.0);
    f.read_nullable("attn_logit_softcapping", llm, llm.attention_softcap, 50.0);
    f.read_nullable("final_logit_softcapping", llm, llm.final_softcap, 30.0);
  }
  llm.num_experts = 0;
  llm.router_aux_loss = 0;
  if (traits.experts) {
    f.read_or("num_local_experts", llm, llm.num_experts, int64_t{8});
    f.read_or("num_experts_per_tok", llm, llm.experts_per_token, int64_t{2});
    if (f.get_or<bool>("output_router_logits", false))
      f.read_or("router_aux_loss_coef", llm, llm.router_aux_loss, 0.001);
  }
  RunConfig config;
  config.model.llm = llm;
  check_described(std::move(config), source, {"model.llm."});
}

}  // namespace mgm
