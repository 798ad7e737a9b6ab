// The language model's part of config.json: what is read, written back, defaulted and refused.
#include <gtest/gtest.h>

#include <functional>

#include "assemble/hf_config.h"
#include "base/error.h"
#include "config/llm_arch.h"

namespace mgm {
namespace {

Json minimal(const std::string& type) {
  return {{"model_type", type},       {"vocab_size", 100},      {"hidden_size", 64},
          {"intermediate_size", 128}, {"num_hidden_layers", 4}, {"num_attention_heads", 4},
          {"num_key_value_heads", 2}, {"rms_norm_eps", 1e-6},   {"max_position_embeddings", 8192}};
}

LlmConfig read(const Json& json) {
  LlmConfig llm;
  read_llm_config(json, "config.json", llm);
  return llm;
}

std::string refusal(const Json& json) {
  try {
    read(json);
  } catch (const CheckpointError& e) {
    return e.what();
  }
  return "no error";
}

void expect_refused(Json json, const std::string& key, const Json& value,
                    const std::vector<std::string>& words) {
  json[key] = value;
  const std::string message = refusal(json);
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), message.npos) << message << " lacks " << word;
  }
}

std::vector<int64_t> windows(const LlmConfig& llm) {
  std::vector<int64_t> out;
  for (int64_t i = 0; i < llm.num_layers; ++i) out.push_back(layer_window(llm, i));
  return out;
}

TEST(LlmConfigJson, TheArchitectureIsWhatTheConfigSays) {
  for (const LlmTraits& traits : known_llms()) {
    const std::string type = to_lower(traits.class_name);
    for (const char* prefix : {"", "mgm_", "mini_gemini_"}) {
      EXPECT_EQ(read(minimal(prefix + type)).arch, traits.arch) << prefix << type;
    }
    for (const char* prefix : {"", "MGM", "MiniGemini"}) {
      Json json = minimal("");
      json.erase("model_type");
      json["architectures"] = Json::array({cat(prefix, traits.class_name, "ForCausalLM")});
      EXPECT_EQ(read(json).arch, traits.arch) << json["architectures"];
    }
  }
  EXPECT_EQ(read(minimal("mgm")).arch, LlmArch::kLlama);
  EXPECT_EQ(read(minimal("mini_gemini")).arch, LlmArch::kLlama);
}

TEST(LlmConfigJson, UnknownArchitecturesAreToldTheKnownOnes) {
  std::vector<std::string> words = {"config.json", "'deepseek_v3'"};
  for (const LlmTraits& traits : known_llms()) words.push_back(to_lower(traits.class_name));
  expect_refused(minimal(""), "model_type", "deepseek_v3", words);
  expect_refused(minimal("llama"), "architectures", Json::array({"GemmaForCausalLM"}),
                 {"'llama'", "'GemmaForCausalLM'", "different"});
  // A name that only begins like a known one is another architecture.
  expect_refused(minimal(""), "model_type", "gemma3_text", {"gemma3_text"});
  expect_refused(minimal(""), "model_type", "qwen2_moe", {"qwen2_moe"});
}

TEST(LlmConfigJson, WrittenAndReadAgainIsTheSame) {
  for (const LlmTraits& traits : known_llms()) {
    Json json = minimal(to_lower(traits.class_name));
    json["head_dim"] = 24;
    json["rope_theta"] = 5e5;
    json["sliding_window"] = 99;
    json["use_sliding_window"] = true;
    json["max_window_layers"] = 2;
    json["query_pre_attn_scalar"] = 17;
    json["attn_logit_softcapping"] = 3.5;
    json["final_logit_softcapping"] = nullptr;
    json["attention_bias"] = traits.arch == LlmArch::kLlama;
    json["output_router_logits"] = true;
    json["router_aux_loss_coef"] = 0.02;
    json["hidden_act"] = "gelu";
    json["tie_word_embeddings"] = false;
    if (traits.arch == LlmArch::kPhi3) {
      const std::vector<double> twelve(12, 1.5);
      json["rope_scaling"] = {{"type", "su"}, {"short_factor", twelve}, {"long_factor", twelve}};
    } else if (traits.arch == LlmArch::kLlama) {
      json["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", 8.0},
                              {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 1024}};
    }
    const LlmConfig first = read(json);
    const OrderedJson written = to_llm_config(first, {1, 2, 0}, "float32");
    const LlmConfig second = read(Json::parse(written.dump()));
    EXPECT_EQ(written, to_llm_config(second, {1, 2, 0}, "float32")) << traits.class_name;
    EXPECT_EQ(first.arch, second.arch);
    EXPECT_EQ(windows(first), windows(second)) << traits.class_name;
    EXPECT_EQ(first.rope_scaling.type, second.rope_scaling.type);
    EXPECT_EQ(first.rope_scaling.factor, second.rope_scaling.factor);
    EXPECT_EQ(first.max_positions, second.max_positions);
    EXPECT_EQ(first.activation, second.activation);
    EXPECT_EQ(first.final_softcap, second.final_softcap);
    EXPECT_EQ(first.attention_softcap, second.attention_softcap);
    EXPECT_EQ(first.router_aux_loss, second.router_aux_loss);
    std::vector<ConfigProblem> problems;
    check_llm(second, problems);
    EXPECT_TRUE(problems.empty()) << traits.class_name << ": " << problems.front().message;
  }
}

TEST(LlmConfigJson, AbsentFieldsHaveTheDefaultsOfTransformers) {
  EXPECT_EQ(read(minimal("gemma")).head_dim, 256);
  EXPECT_EQ(read(minimal("qwen3")).head_dim, 128);
  EXPECT_EQ(head_width(read(minimal("qwen2"))), 16);
  EXPECT_TRUE(read(minimal("gemma2")).tie_embeddings);
  EXPECT_FALSE(read(minimal("phi3")).tie_embeddings);
  EXPECT_EQ(read(minimal("mixtral")).rope_theta, 1e6);
  EXPECT_EQ(read(minimal("mixtral")).num_experts, 8);
  EXPECT_EQ(read(minimal("mixtral")).router_aux_loss, 0);
  EXPECT_EQ(read(minimal("gemma")).activation, Activation::kGeluTanh);
  EXPECT_EQ(read(minimal("gemma2")).query_scalar, 256);
  EXPECT_EQ(read(minimal("gemma2")).attention_softcap, 50);
  EXPECT_EQ(read(minimal("gemma2")).final_softcap, 30);
  Json mistral = minimal("mistral");
  for (const char* key : {"rms_norm_eps", "num_key_value_heads", "max_position_embeddings"}) {
    mistral.erase(key);
  }
  mistral["num_attention_heads"] = 16;
  EXPECT_EQ(read(mistral).norm_eps, 1e-6);
  EXPECT_EQ(read(mistral).num_kv_heads, 8);
  EXPECT_EQ(read(mistral).max_positions, 131072);
  mistral["num_key_value_heads"] = nullptr;
  EXPECT_EQ(read(mistral).num_kv_heads, 16);
}

TEST(LlmConfigJson, BiasesCountWhereTransformersHasThem) {
  for (const LlmTraits& traits : known_llms()) {
    Json json = minimal(to_lower(traits.class_name));
    json["attention_bias"] = json["mlp_bias"] = true;
    const bool llama = traits.arch == LlmArch::kLlama;
    EXPECT_EQ(read(json).mlp_bias, llama);
    EXPECT_EQ(read(json).attention_bias, llama || traits.unit_norm || traits.qk_norm);
  }
}

TEST(LlmConfigJson, Windows) {
  using W = std::vector<int64_t>;
  EXPECT_EQ(windows(read(minimal("llama"))), (W{0, 0, 0, 0}));
  EXPECT_EQ(windows(read(minimal("mistral"))), (W{4096, 4096, 4096, 4096}));
  EXPECT_EQ(windows(read(minimal("gemma2"))), (W{4096, 0, 4096, 0}));
  EXPECT_EQ(windows(read(minimal("phi3"))), (W{0, 0, 0, 0}));
  Json mistral = minimal("mistral");
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(windows(read(mistral)), (W{0, 0, 0, 0}));
  Json qwen = minimal("qwen2");
  qwen["sliding_window"] = 32;  // as published: without use_sliding_window it means nothing
  EXPECT_EQ(windows(read(qwen)), (W{0, 0, 0, 0}));
  qwen["use_sliding_window"] = true;
  qwen["max_window_layers"] = 3;
  EXPECT_EQ(windows(read(qwen)), (W{0, 0, 0, 32}));
  qwen["layer_types"] = {kSlidingLayer, kFullLayer, kFullLayer, kFullLayer};
  EXPECT_EQ(windows(read(qwen)), (W{32, 0, 0, 0}));
  expect_refused(qwen, "use_sliding_window", false,
                 {"config.json: layer_types has sliding_attention", "use_sliding_window is not"});
  qwen["use_sliding_window"] = false;
  qwen["layer_types"] = Json::array({kFullLayer, kFullLayer, kFullLayer, kFullLayer});
  EXPECT_EQ(windows(read(qwen)), (W{0, 0, 0, 0}));
}

TEST(LlmConfigJson, GemmaActivation) {
  Json json = minimal("gemma");
  json["hidden_act"] = "gelu";
  EXPECT_EQ(read(json).activation, Activation::kGelu);
  json["hidden_activation"] = nullptr;
  EXPECT_EQ(read(json).activation, Activation::kGelu);
  json["hidden_activation"] = "gelu_pytorch_tanh";
  EXPECT_EQ(read(json).activation, Activation::kGelu);  // hidden_act counts
  Json gemma2 = minimal("gemma2");
  gemma2["hidden_act"] = "gelu";
  EXPECT_EQ(read(gemma2).activation, Activation::kGeluTanh);
  gemma2["hidden_activation"] = "gelu";
  EXPECT_EQ(read(gemma2).activation, Activation::kGelu);
}

TEST(LlmConfigJson, LongropeEndsWhereTheLongFactorsBegin) {
  Json json = minimal("phi3");
  json["max_position_embeddings"] = 131072;
  json["original_max_position_embeddings"] = 4096;
  json["rope_scaling"] = {{"type", "longrope"},
                          {"short_factor", std::vector<double>(8, 1.0)},
                          {"long_factor", std::vector<double>(8, 2.0)}};
  const LlmConfig llm = read(json);
  EXPECT_EQ(llm.max_positions, 4096);
  EXPECT_EQ(llm.rope_scaling.factor, 32);
  EXPECT_EQ(to_llm_config(llm, {}, "float32")["max_position_embeddings"], 131072);
}

TEST(LlmConfigJson, NewerFilesKeepTheRopeInOneObject) {
  Json json = minimal("llama");
  json["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 777.0}};
  EXPECT_EQ(read(json).rope_theta, 777);
  EXPECT_EQ(read(json).rope_scaling.type, RopeType::kLinear);
}

TEST(LlmConfigJson, LongropeByItsFactor) {
  Json json = minimal("llama");
  Json rope = {{"rope_type", "longrope"},
               {"short_factor", std::vector<double>(8, 1.0)},
               {"long_factor", std::vector<double>(8, 2.0)}};
  json["rope_scaling"] = rope;
  EXPECT_NE(refusal(json).find("'factor'"), std::string::npos) << refusal(json);
  for (const double factor : {4.0, 3.00001}) {  // with and without whole lengths
    json["rope_scaling"]["factor"] = factor;
    const OrderedJson written = to_llm_config(read(json), {}, "float32");
    for (const LlmConfig& llm : {read(json), read(Json::parse(written.dump()))}) {
      EXPECT_EQ(llm.rope_scaling.factor, factor);
      EXPECT_EQ(llm.rope_scaling.original_max_positions, 8192);
      EXPECT_EQ(llm.max_positions, 8192);
    }
  }
  json["original_max_position_embeddings"] = 1024;  // then the factor is the ratio
  EXPECT_EQ(read(json).rope_scaling.factor, 8);
  json["rope_scaling"]["original_max_position_embeddings"] = 1024;
  EXPECT_EQ(read(json).rope_scaling.factor, 8);
  json["rope_scaling"]["original_max_position_embeddings"] = 512;
  EXPECT_NE(refusal(json).find("original_max_position_embeddings 512"), std::string::npos);
  Json newer = minimal("llama");  // as transformers 5 writes it
  rope["original_max_position_embeddings"] = 2048;
  newer["rope_parameters"] = rope;
  EXPECT_EQ(read(newer).rope_scaling.factor, 4);
  rope["factor"] = 2.0;
  expect_refused(newer, "rope_parameters", rope, {"config.json rope_parameters", "factor 2", "4"});
}

TEST(LlmConfigJson, RopesThatContradictThemselvesAreRefused) {
  const Json linear = {{"rope_type", "linear"}, {"factor", 4.0}};
  expect_refused(minimal("llama"), "rope_scaling", {{"factor", 4.0}},
                 {"config.json rope_scaling", "has factor but no rope_type"});
  Json both = linear;
  both["type"] = "default";
  expect_refused(minimal("llama"), "rope_scaling", both, {"'default'", "'linear'", "contradict"});
  both["type"] = "linear";
  Json json = minimal("llama");
  json["rope_scaling"] = both;
  EXPECT_EQ(read(json).rope_scaling.factor, 4);
  json["rope_parameters"] = both;
  EXPECT_EQ(read(json).rope_scaling.factor, 4);
  expect_refused(json, "rope_parameters", {{"rope_type", "default"}},
                 {"rope_scaling and rope_parameters"});
  json["rope_theta"] = 10000.0;
  json.erase("rope_scaling");
  expect_refused(json, "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5e5}},
                 {"rope_theta 500000", "rope_theta 10000"});
  expect_refused(minimal("llama"), "rope_scaling", {{"rope_type", "default"}, {"rope_theta", 5e5}},
                 {"rope_theta 500000", "rope_theta 10000"});
  expect_refused(minimal("llama"), "rope_scaling",
                 {{"rope_type", "llama3"},
                  {"factor", 8.0},
                  {"low_freq_factor", 1.0},
                  {"high_freq_factor", 4.0}},
                 {"'original_max_position_embeddings' is missing"});
}

TEST(LlmConfigJson, RefusesWhatItCannotDo) {
  expect_refused(minimal("llama"), "rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}},
                 {"'yarn'", "default, linear, llama3, longrope"});
  expect_refused(minimal("qwen2"), "rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}},
                 {"'dynamic'"});
  expect_refused(minimal("llama"), "rope_scaling", Json::object({{"rope_type", "linear"}}),
                 {"'factor'"});
  expect_refused(minimal("llama"), "rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}},
                 {"low_freq_factor"});
  expect_refused(minimal("llama"), "partial_rotary_factor", 0.5, {"partial_rotary_factor 0.5"});
  expect_refused(minimal("llama"), "hidden_act", "relu2", {"hidden_act 'relu2'"});
  expect_refused(minimal("phi3"), "resid_pdrop", 0.1, {"resid_pdrop 0.1"});
  expect_refused(minimal("mixtral"), "router_jitter_noise", 0.1, {"router_jitter_noise"});
  expect_refused(minimal("mistral"), "sliding_window", -1,
                 {"'sliding_window'", "between 0 and", "got -1"});
}

TEST(LlmConfigJson, QuantisedModelsAreToldWhatToDo) {
  expect_refused(minimal("llama"), "quantization_config",
                 {{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}},
                 {"config.json quantization_config", "'bitsandbytes'", "model.llm.quantize"});
  Json json = minimal("llama");
  json["quantization_config"] = nullptr;
  EXPECT_EQ(refusal(json), "no error");
}

TEST(LlmConfigJson, WholeNumbersMayHaveAPointButNoFraction) {
  Json json = minimal("llama");
  json["hidden_size"] = 64.0;
  json["vocab_size"] = uint64_t{100};
  EXPECT_EQ(read(json).hidden_size, 64);
  EXPECT_EQ(read(json).vocab_size, 100);
  for (const Json& bad : {Json(40.7), Json(1e30), Json(-1e30), Json(uint64_t{1} << 63), Json("64"),
                          Json(true), Json::array({64}), Json::object()}) {
    expect_refused(minimal("llama"), "hidden_size", bad,
                   {"config.json", "'hidden_size'", bad.dump()});
  }
}

TEST(LlmConfigJson, NumbersObeyTheSchemaOfYaml) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings"}) {
    for (const Json& bad : {Json(0), Json(-5), Json(int64_t{1} << 62), Json(1e12)}) {
      expect_refused(minimal("llama"), key, bad,
                     {"config.json", cat("'", key, "'"), "between 1 and"});
    }
  }
  expect_refused(minimal("llama"), "head_dim", -16, {"'head_dim'", "between 0 and", "got -16"});
  expect_refused(minimal("llama"), "rms_norm_eps", -1.0, {"'rms_norm_eps'", "between 0 and 1"});
  expect_refused(minimal("llama"), "rope_theta", 0, {"'rope_theta'", "between 1 and"});
  expect_refused(minimal("mixtral"), "num_local_experts", 1000000, {"'num_local_experts'"});
  expect_refused(minimal("llama"), "rope_scaling", {{"rope_type", "linear"}, {"factor", 0.0}},
                 {"config.json rope_scaling", "'factor'", "between 1 and"});
  Json phi = minimal("phi3");
  phi["original_max_position_embeddings"] = 0;
  expect_refused(phi, "rope_scaling",
                 {{"type", "longrope"},
                  {"short_factor", std::vector<double>(8, 1.0)},
                  {"long_factor", std::vector<double>(8, 1.0)}},
                 {"'original_max_position_embeddings'"});
  expect_refused(phi, "rope_scaling",
                 {{"type", "longrope"}, {"short_factor", {1.0, -3.0}}, {"long_factor", {1.0}}},
                 {"'short_factor[1]'", "got -3"});
}

TEST(LlmConfigJson, SizesObeyTheRulesOfYaml) {
  expect_refused(minimal("llama"), "num_key_value_heads", 3, {"config.json", "num_kv_heads"});
  expect_refused(minimal("llama"), "num_attention_heads", 6, {"config.json", "num_heads"});
  expect_refused(minimal("llama"), "head_dim", 7, {"config.json", "even head width, got 7"});
}

TEST(LlmConfig, ContradictionsAreFound) {
  const auto first_problem = [](const std::string& type,
                                const std::function<void(LlmConfig&)>& change) {
    LlmConfig llm = read(minimal(type));
    change(llm);
    std::vector<ConfigProblem> problems;
    check_llm(llm, problems);
    return problems.empty() ? std::string("none") : problems.front().key;
  };
  EXPECT_EQ(first_problem("llama", [](LlmConfig&) {}), "none");
  EXPECT_EQ(first_problem("llama", [](LlmConfig& c) { c.num_experts = 4; }),
            "model.llm.num_experts");
  EXPECT_EQ(first_problem("mixtral", [](LlmConfig& c) { c.num_experts = 1; }),
            "model.llm.num_experts");
  EXPECT_EQ(first_problem("qwen2", [](LlmConfig& c) { c.layer_types = {kFullLayer}; }),
            "model.llm.layer_types");
  EXPECT_EQ(
      first_problem("qwen2", [](LlmConfig& c) { c.layer_types = {kFullLayer, "x", "x", "x"}; }),
      "model.llm.layer_types");
  EXPECT_EQ(first_problem("phi3", [](LlmConfig& c) { c.attention_bias = true; }),
            "model.llm.attention_bias");
  EXPECT_EQ(first_problem("qwen2", [](LlmConfig& c) { c.attention_bias = true; }),
            "model.llm.attention_bias");
  EXPECT_EQ(first_problem("qwen3", [](LlmConfig& c) { c.mlp_bias = true; }), "model.llm.mlp_bias");
  EXPECT_EQ(first_problem("phi3", [](LlmConfig& c) { c.rotary_fraction = 0.3; }), "none");
  EXPECT_EQ(first_problem("phi3", [](LlmConfig& c) { c.rotary_fraction = 0.2; }),
            "model.llm.rotary_fraction");
  EXPECT_EQ(first_problem("llama", [](LlmConfig& c) { c.rope_scaling.type = RopeType::kLlama3; }),
            "model.llm.rope_scaling.original_max_positions");
  EXPECT_EQ(first_problem("phi3",
                          [](LlmConfig& c) {
                            c.rope_scaling.type = RopeType::kLongrope;
                            c.rope_scaling.original_max_positions = 8192;
                            c.rope_scaling.short_factor = {1, 2, 3};
                          }),
            "model.llm.rope_scaling.short_factor");
}

}  // namespace
}  // namespace mgm
