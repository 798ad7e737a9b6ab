#include "checkpoint/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "checkpoint/gguf_names.h"

namespace mgm {
namespace {

using Floats = std::function<std::vector<float>(const std::string&)>;

// "<architecture>.<key>" with errors that name it.
class Metadata {
 public:
  Metadata(const GgufFile& file, std::string source, std::string architecture)
      : file_(file), source_(std::move(source)), prefix_(std::move(architecture) + ".") {}

  bool has(const std::string& key) const { return find(prefix_ + key) != nullptr; }

  int64_t integer(const std::string& key) const {
    const GgufValue& value = at(key);
    const auto out = value.integer();
    if (!out) refuse(key, "is no integer of its own (one number for all layers is read)");
    return *out;
  }
  double number(const std::string& key) const {
    const auto out = at(key).number();
    if (!out || !std::isfinite(*out)) refuse(key, "is no finite number");
    return shortest(*out);
  }
  std::string text(const std::string& key) const {
    const auto out = at(key).string();
    if (!out) refuse(key, "is no text");
    return std::string(*out);
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    throw CheckpointError(source_, ": metadata '", prefix_, key, "' ", why);
  }

 private:
  // The file has fp32: 1e-05 is meant where 9.99999974e-06 is stored.
  static double shortest(double value) {
    const auto stored = static_cast<float>(value);
    if (static_cast<double>(stored) != value) return value;  // fp64
    for (int digits = 6; digits < 9; ++digits) {
      const double shorter = std::stod(strf("%.*g", digits, value));
      if (static_cast<float>(shorter) == stored) return shorter;
    }
    return value;
  }
  const GgufValue* find(const std::string& key) const {
    const auto it = file_.metadata.find(key);
    return it == file_.metadata.end() ? nullptr : &it->second;
  }
  const GgufValue& at(const std::string& key) const {
    const GgufValue* value = find(prefix_ + key);
    if (!value) refuse(key, "is missing");
    return *value;
  }

  const GgufFile& file_;
  std::string source_, prefix_;
};

const GgufTensor* find_tensor(const GgufFile& file, const std::string& name) {
  for (const GgufTensor& t : file.tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

struct HfNames {
  std::string model_type, class_name, activation;
};

HfNames hf_names(const std::string& architecture, bool experts) {
  if (architecture == "gemma") return {"gemma", "GemmaForCausalLM", "gelu_pytorch_tanh"};
  if (architecture == "gemma2") return {"gemma2", "Gemma2ForCausalLM", "gelu_pytorch_tanh"};
  if (architecture == "qwen2") return {"qwen2", "Qwen2ForCausalLM", "silu"};
  if (architecture == "qwen3") return {"qwen3", "Qwen3ForCausalLM", "silu"};
  if (architecture == "phi3") return {"phi3", "Phi3ForCausalLM", "silu"};
  if (experts) return {"mixtral", "MixtralForCausalLM", "silu"};
  return {"llama", "LlamaForCausalLM", "silu"};
}

// The divisors of LLaMA 3's rope frequencies, as transformers computes them from a config.
std::vector<float> llama3_factors(double theta, int64_t head_dim, double factor, double low,
                                  double high, double positions) {
  std::vector<float> out;
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double wavelength =
        2 * std::numbers::pi *
        std::pow(theta, static_cast<double>(i) / static_cast<double>(head_dim));
    double divisor = 1;
    if (wavelength > positions / low) {
      divisor = factor;
    } else if (wavelength >= positions / high) {
      const double smooth = (positions / wavelength - low) / (high - low);
      divisor = 1 / ((1 - smooth) / factor + smooth);
    }
    out.push_back(static_cast<float>(divisor));
  }
  return out;
}

// A file holds the factors alone; of LLaMA 3.1 to 3.3 all but the factor is known, and whether that
// is right is computed.
OrderedJson llama3_scaling(const std::vector<float>& stored, double theta, int64_t head_dim,
                           const std::string& source) {
  constexpr double kLow = 1, kHigh = 4, kPositions = 8192;
  const double factor = stored.empty() ? 1 : *std::max_element(stored.begin(), stored.end());
  // Sizes first: a damaged head_dim may be any number.
  bool same = static_cast<int64_t>(stored.size()) == head_dim / 2;
  const std::vector<float> expected =
      same ? llama3_factors(theta, head_dim, factor, kLow, kHigh, kPositions)
           : std::vector<float>();
  for (size_t i = 0; same && i < stored.size(); ++i) {
    same = std::abs(stored[i] - expected[i]) <= 1e-4f * expected[i];
  }
  if (!same) {
    throw CheckpointError(source, ": rope_freqs.weight is not what LLaMA 3's scaling with factor ",
                          factor,
                          " gives; take the original weights, whose config.json has rope_scaling");
  }
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", kLow},
          {"high_freq_factor", kHigh},
          {"original_max_position_embeddings", int64_t{8192}}};
}

// llama.cpp multiplies cos and sin by it whatever the type; transformers for longrope alone, where
// it follows from the lengths unless written.
void put_attention_factor(OrderedJson& j, const Metadata& m, bool longrope) {
  const char* kFactor = "rope.scaling.attn_factor";
  const double factor = m.has(kFactor) ? m.number(kFactor) : 1;
  if (!longrope) {
    if (factor == 1) return;
    m.refuse(kFactor,
             cat("is ", factor, "; only files with rope_factors_long.weight may scale so"));
  }
  const double original = j["original_max_position_embeddings"].get<double>();
  const double ratio = j["max_position_embeddings"].get<double>() / original;
  const double usual = ratio > 1 ? std::sqrt(1 + std::log(ratio) / std::log(original)) : 1;
  if (!(std::abs(factor - usual) <= 1e-6 * usual)) j["rope_scaling"]["attention_factor"] = factor;
}

void put_rope(OrderedJson& j, const Metadata& m, const GgufFile& file, const std::string& source,
              int64_t head_dim, const Floats& floats) {
  const double theta = m.has("rope.freq_base") ? m.number("rope.freq_base") : 10000;
  j["rope_theta"] = theta;
  j["rope_scaling"] = nullptr;
  const char *kOriginal = "rope.scaling.original_context_length", *kType = "rope.scaling.type";
  // By the rules of llama.cpp's loader: linear where no type is named, the key of older files where
  // the newer one is missing, 0 is none.
  const std::string type = m.has(kType) ? m.text(kType) : "linear";
  const char* key = m.has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  double factor = m.has(key) && type != "none" ? m.number(key) : 1;
  if (factor == 0) factor = 1;
  const bool llama3 = find_tensor(file, "rope_freqs.weight") != nullptr;
  const bool longrope = !llama3 && find_tensor(file, "rope_factors_long.weight") &&
                        find_tensor(file, "rope_factors_short.weight");
  if ((llama3 || longrope) && factor != 1) {
    m.refuse(key, cat("is ", factor, " beside a tensor of factors; config.json cannot say both"));
  }
  if (llama3) {
    j["rope_scaling"] = llama3_scaling(floats("rope_freqs.weight"), theta, head_dim, source);
  } else if (longrope) {
    j["rope_scaling"] = {{"type", "longrope"},
                         {"long_factor", floats("rope_factors_long.weight")},
                         {"short_factor", floats("rope_factors_short.weight")}};
    j["original_max_position_embeddings"] = m.integer(kOriginal);
  } else if (type == "yarn") {
    j["rope_scaling"] = {{"rope_type", type},
                         {"factor", factor},
                         {"original_max_position_embeddings", m.integer(kOriginal)}};
  } else if (type != "linear" && type != "none") {
    m.refuse(kType, cat("is '", type, "'"));
  } else if (factor != 1) {
    j["rope_scaling"] = {{"rope_type", "linear"}, {"factor", factor}};
  }
  put_attention_factor(j, m, longrope);
  const int64_t rotated =
      m.has("rope.dimension_count") ? m.integer("rope.dimension_count") : head_dim;
  if (rotated != head_dim) {
    j["partial_rotary_factor"] = static_cast<double>(rotated) / static_cast<double>(head_dim);
  }
}

void put_gemma2(OrderedJson& j, const Metadata& m, int64_t head_dim) {
  constexpr int64_t kLayersOf27B = 46;  // llama.cpp tells the 27B, which scales otherwise, by them
  const int64_t heads = j["num_attention_heads"].get<int64_t>();
  j["query_pre_attn_scalar"] = j["num_hidden_layers"].get<int64_t>() == kLayersOf27B
                                   ? j["hidden_size"].get<int64_t>() / heads
                                   : head_dim;
  j["attn_logit_softcapping"] = m.number("attn_logit_softcapping");
  j["final_logit_softcapping"] = m.number("final_logit_softcapping");
}

}  // namespace

std::string gguf_architecture(const GgufFile& file, const std::string& source) {
  const auto it = file.metadata.find("general.architecture");
  const auto name = it == file.metadata.end() ? std::nullopt : it->second.string();
  if (!name) throw CheckpointError(source, ": metadata 'general.architecture' is missing");
  const std::vector<std::string>& known = gguf_architectures();
  if (std::find(known.begin(), known.end(), *name) == known.end()) {
    throw CheckpointError(source, ": architecture '", *name, "' is not known; known are ",
                          join(known, ", "));
  }
  return std::string(*name);
}

OrderedJson gguf_generation_config(const GgufFile& file) {
  OrderedJson out = OrderedJson::object();
  for (const auto& [key, name] : {std::pair{"bos_token_id", "bos_token_id"},
                                  {"eos_token_id", "eos_token_id"},
                                  {"padding_token_id", "pad_token_id"}}) {
    const auto it = file.metadata.find(cat("tokenizer.ggml.", key));
    if (it == file.metadata.end()) continue;
    if (const auto id = it->second.integer()) out[name] = *id;
  }
  return out;
}

OrderedJson gguf_to_hf_config(const GgufFile& file, const std::string& source,
                              const Floats& floats) {
  const std::string architecture = gguf_architecture(file, source);
  const Metadata m(file, source, architecture);
  const int64_t experts = m.has("expert_count") ? m.integer("expert_count") : 0;
  const HfNames names = hf_names(architecture, experts > 0);
  const GgufTensor* embedding = find_tensor(file, "token_embd.weight");
  if (!embedding || embedding->shape.size() != 2) {
    throw CheckpointError(source, ": has no matrix token_embd.weight: not a whole language model");
  }
  OrderedJson j;
  j["architectures"] = {names.class_name};
  j["model_type"] = names.model_type;
  j["hidden_size"] = m.integer("embedding_length");
  j["intermediate_size"] = m.integer("feed_forward_length");
  j["num_hidden_layers"] = m.integer("block_count");
  const int64_t heads = m.integer("attention.head_count");
  if (heads <= 0) m.refuse("attention.head_count", cat("is ", heads));
  j["num_attention_heads"] = heads;
  j["num_key_value_heads"] =
      m.has("attention.head_count_kv") ? m.integer("attention.head_count_kv") : heads;
  const int64_t head_dim = m.has("attention.key_length") ? m.integer("attention.key_length")
                                                         : j["hidden_size"].get<int64_t>() / heads;
  if (head_dim <= 0) m.refuse("attention.key_length", cat("is ", head_dim));
  j["head_dim"] = head_dim;
  j["vocab_size"] = embedding->shape[0];
  j["max_position_embeddings"] = m.integer("context_length");
  j["rms_norm_eps"] = m.number("attention.layer_norm_rms_epsilon");
  put_rope(j, m, file, source, head_dim, floats);
  j["hidden_act"] = names.activation;
  if (architecture == "gemma" || architecture == "gemma2") {
    j["hidden_activation"] = names.activation;
  }
  if (architecture != "qwen2") {
    j["attention_bias"] = find_tensor(file, "blk.0.attn_q.bias") != nullptr;
  }
  j["tie_word_embeddings"] = find_tensor(file, "output.weight") == nullptr;
  if (experts > 0) {
    j["num_local_experts"] = experts;
    j["num_experts_per_tok"] = m.integer("expert_used_count");
  }
  if (m.has("attention.sliding_window") && m.integer("attention.sliding_window") > 0) {
    j["sliding_window"] = m.integer("attention.sliding_window");
  } else if (architecture == "phi3" && !m.has("attention.sliding_window")) {
    // Files from before llama.cpp wrote the key: Phi-3-mini-4k and -medium-4k have a window.
    const int64_t layers = m.integer("block_count");
    if ((layers == 32 || layers == 40) && m.integer("context_length") == 4096) {
      j["sliding_window"] = 2047;
    }
  }
  if (architecture == "gemma2") put_gemma2(j, m, head_dim);
  j.update(gguf_generation_config(file));
  return j;
}

}  // namespace mgm
