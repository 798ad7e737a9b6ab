#include "assemble/hf_config.h"

#include <numeric>

#include "base/error.h"

namespace mgm {
namespace {

const char* llm_class(LlmArch arch) {
  switch (arch) {
    case LlmArch::kGemma:
      return "Gemma";
    case LlmArch::kMixtral:
      return "Mixtral";
    case LlmArch::kLlama:
      break;
  }
  return "Llama";
}

OrderedJson id_or_null(int64_t id) { return id >= 0 ? OrderedJson(id) : OrderedJson(nullptr); }

// Typed access to a config.json that says which field of which file is wrong.
class Fields {
 public:
  Fields(const Json& json, std::string source) : json_(json), source_(std::move(source)) {
    if (!json.is_object()) throw CheckpointError(source_, ": expected a JSON object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }

  template <class T>
  T get(const char* key) const {
    if (!has(key)) throw CheckpointError(source_, ": field '", key, "' is missing");
    try {
      return json_.at(key).get<T>();
    } catch (const Json::exception&) {
      throw CheckpointError(source_, ": field '", key,
                            "' has an unexpected value: ", json_.at(key).dump());
    }
  }

  template <class T>
  T get_or(const char* key, T fallback) const {
    return has(key) ? get<T>(key) : fallback;
  }

  Fields sub(const char* key) const { return {get<Json>(key), source_ + " " + key}; }
  const std::string& source() const { return source_; }

 private:
  Json json_;
  std::string source_;
};

LlmArch read_arch(const Fields& f) {
  const auto type = f.get<std::string>("model_type");
  if (type == "llama" || type == "mgm" || type == "mini_gemini") return LlmArch::kLlama;
  for (const auto& [suffix, arch] :
       {std::pair{"gemma", LlmArch::kGemma}, {"mixtral", LlmArch::kMixtral}}) {
    if (type == suffix || type == cat("mgm_", suffix) || type == cat("mini_gemini_", suffix))
      return arch;
  }
  throw CheckpointError(f.source(), ": model_type '", type,
                        "' is not supported; known: llama, gemma, mixtral and their mgm forms");
}

// The published ConvNeXts, by the rules of the reference on the tower's directory name.
HrEncoder convnext_by_name(const std::string& path, const std::string& source) {
  if (path.find("xxlarge") != path.npos) return HrEncoder::kConvnextXxlarge;
  if (path.find("large") != path.npos && path.find("d-320") != path.npos)
    return HrEncoder::kConvnextLarge;
  if (path.find("base") != path.npos && path.find("w-320") != path.npos)
    return HrEncoder::kConvnextBase;
  throw CheckpointError(source, ": mm_vision_tower_aux '", path,
                        "' names no known ConvNeXt (large d-320, base w-320, xxlarge)");
}

void read_own_fields(const Fields& own, ModelDescription& d) {
  const Fields tower = own.sub("vision_tower");
  VisionTowerConfig& v = d.model.vision_tower;
  v.image_size = tower.get<int64_t>("image_size");
  v.patch_size = tower.get<int64_t>("patch_size");
  v.hidden_size = tower.get<int64_t>("hidden_size");
  v.intermediate_size = tower.get<int64_t>("intermediate_size");
  v.num_layers = tower.get<int64_t>("num_hidden_layers");
  v.num_heads = tower.get<int64_t>("num_attention_heads");
  v.norm_eps = tower.get<double>("layer_norm_eps");
  if (own.has("convnext")) {
    const Fields convnext = own.sub("convnext");
    d.model.hr_encoder = HrEncoder::kConvnext;
    d.model.convnext.depths = convnext.get<std::vector<int64_t>>("depths");
    d.model.convnext.dims = convnext.get<std::vector<int64_t>>("dims");
    d.model.convnext.norm_eps = convnext.get<double>("norm_eps");
  } else {
    d.model.hr_encoder = HrEncoder::kNone;
  }
  d.image.hr_size = own.get<int64_t>("hr_size");
  d.image.hr_source =
      own.get<std::string>("hr_source") == "native" ? HrSource::kNative : HrSource::kUpsampledLr;
  d.image.mean = own.get<std::vector<double>>("image_mean");
  d.image.std = own.get<std::vector<double>>("image_std");
  d.text.template_name = own.get<std::string>("template");
}

}  // namespace

OrderedJson to_llm_config(const LlmConfig& llm, const SpecialIds& ids, const std::string& dtype) {
  const std::string name = llm_class(llm.arch);
  OrderedJson j;
  j["architectures"] = {name + "ForCausalLM"};
  j["model_type"] = to_lower(name);
  j["hidden_size"] = llm.hidden_size;
  j["intermediate_size"] = llm.intermediate_size;
  j["num_hidden_layers"] = llm.num_layers;
  j["num_attention_heads"] = llm.num_heads;
  j["num_key_value_heads"] = llm.num_kv_heads;
  if (llm.head_dim > 0) j["head_dim"] = llm.head_dim;
  j["vocab_size"] = llm.vocab_size;
  j["max_position_embeddings"] = llm.max_positions;
  j["rms_norm_eps"] = llm.norm_eps;
  j["rope_theta"] = llm.rope_theta;
  j["rope_scaling"] = nullptr;
  j["hidden_act"] = llm.activation == Activation::kSilu ? "silu" : "gelu";
  j["attention_bias"] = false;
  j["tie_word_embeddings"] = llm.tie_embeddings;
  if (llm.num_experts > 0) {
    j["num_local_experts"] = llm.num_experts;
    j["num_experts_per_tok"] = llm.experts_per_token;
  }
  j["bos_token_id"] = id_or_null(ids.bos);
  j["eos_token_id"] = id_or_null(ids.eos);
  j["pad_token_id"] = id_or_null(ids.pad);
  j["torch_dtype"] = dtype;
  j["use_cache"] = true;
  return j;
}

OrderedJson to_hf_config(const ModelDescription& d, const SpecialIds& ids,
                         const std::string& dtype) {
  OrderedJson j = to_llm_config(d.model.llm, ids, dtype);
  const std::string name = llm_class(d.model.llm.arch);
  j["architectures"] = {"MGM" + name + "ForCausalLM"};
  j["model_type"] = d.model.llm.arch == LlmArch::kLlama ? "mgm" : "mgm_" + to_lower(name);
  const VisionTowerConfig& v = d.model.vision_tower;
  const ConvnextConfig& c = d.model.convnext;
  const bool hr = d.model.hr_encoder != HrEncoder::kNone;
  j["mm_vision_tower"] = v.path;
  j["mm_hidden_size"] = v.hidden_size;
  if (hr) {
    j["mm_vision_tower_aux"] = c.path;
    j["mm_hidden_size_aux"] = std::accumulate(c.dims.begin(), c.dims.end(), int64_t{0});
    j["image_size_aux"] = d.image.hr_size;
  }
  j["mm_projector_type"] = d.model.projector.type;
  j["mm_vision_select_layer"] = v.select_layer;
  j["mm_vision_select_feature"] = v.select_feature == SelectFeature::kPatch ? "patch" : "cls_patch";
  j["mm_use_im_start_end"] = false;
  j["mm_use_im_patch_token"] = false;
  j["image_aspect_ratio"] = d.image.aspect == ImageAspect::kPad ? "pad" : "square";
  j["image_grid"] = d.image.grid;
  j["image_global"] = d.image.global;
  j["image_grid_pinpoints"] = nullptr;
  j["optimize_vision_tower"] = false;
  j["optimize_vision_tower_aux"] = false;
  j["freeze_mm_mlp_adapter"] = false;
  j["tune_mm_mlp_adapter"] = false;
  j["use_mm_proj"] = true;
  j["tokenizer_model_max_length"] = d.text.max_length;
  j["tokenizer_padding_side"] = "right";

  OrderedJson& own = j["mgm"];
  own["vision_tower"] = {
      {"image_size", v.image_size},        {"patch_size", v.patch_size},
      {"hidden_size", v.hidden_size},      {"intermediate_size", v.intermediate_size},
      {"num_hidden_layers", v.num_layers}, {"num_attention_heads", v.num_heads},
      {"layer_norm_eps", v.norm_eps}};
  if (hr) own["convnext"] = {{"depths", c.depths}, {"dims", c.dims}, {"norm_eps", c.norm_eps}};
  own["hr_size"] = d.image.hr_size;
  own["hr_source"] = d.image.hr_source == HrSource::kNative ? "native" : "upsampled_lr";
  own["image_mean"] = d.image.mean;
  own["image_std"] = d.image.std;
  own["template"] = d.text.template_name;
  return j;
}

void read_llm_config(const Json& json, const std::string& source, LlmConfig& llm) {
  const Fields f(json, source);
  llm.arch = read_arch(f);
  llm.vocab_size = f.get<int64_t>("vocab_size");
  llm.hidden_size = f.get<int64_t>("hidden_size");
  llm.intermediate_size = f.get<int64_t>("intermediate_size");
  llm.num_layers = f.get<int64_t>("num_hidden_layers");
  llm.num_heads = f.get<int64_t>("num_attention_heads");
  llm.num_kv_heads = f.get_or<int64_t>("num_key_value_heads", llm.num_heads);
  llm.head_dim = f.get_or<int64_t>("head_dim", 0);
  llm.rope_theta = f.get_or<double>("rope_theta", 10000);
  llm.norm_eps = f.get<double>("rms_norm_eps");
  llm.max_positions = f.get_or<int64_t>("max_position_embeddings", 2048);
  llm.tie_embeddings = f.get_or<bool>("tie_word_embeddings", llm.arch == LlmArch::kGemma);
  llm.num_experts = f.get_or<int64_t>("num_local_experts", 0);
  llm.experts_per_token = f.get_or<int64_t>("num_experts_per_tok", 2);
  const auto act = f.get_or<std::string>("hidden_act", "silu");
  if (act != "silu" && llm.arch == LlmArch::kLlama) {
    throw CheckpointError(source, ": hidden_act '", act,
                          "' is not supported for llama; expected silu");
  }
  llm.activation = act == "silu" ? Activation::kSilu : Activation::kGelu;
  if (f.get_or<bool>("attention_bias", false)) {
    throw CheckpointError(source, ": attention_bias true is not supported");
  }
  if (f.has("rope_scaling")) {
    throw CheckpointError(source, ": rope_scaling ", f.get<Json>("rope_scaling").dump(),
                          " is not supported");
  }
}

ModelDescription read_hf_config(const Json& json, const std::string& source) {
  const Fields f(json, source);
  ModelDescription d;
  read_llm_config(json, source, d.model.llm);
  if (!f.has("mm_vision_tower")) {
    throw CheckpointError(
        source, ": no mm_vision_tower: this is a language model, not a Mini-Gemini model");
  }
  d.model.vision_tower.path = f.get<std::string>("mm_vision_tower");
  d.model.convnext.path = f.get_or<std::string>("mm_vision_tower_aux", "");
  d.model.projector.type = f.get<std::string>("mm_projector_type");
  d.model.vision_tower.select_layer = f.get<int64_t>("mm_vision_select_layer");
  const auto feature = f.get_or<std::string>("mm_vision_select_feature", "patch");
  d.model.vision_tower.select_feature =
      feature == "patch" ? SelectFeature::kPatch : SelectFeature::kClsPatch;
  d.image.aspect = f.get_or<std::string>("image_aspect_ratio", "pad") == "pad"
                       ? ImageAspect::kPad
                       : ImageAspect::kSquare;
  d.image.grid = f.get_or<int64_t>("image_grid", 1);
  d.image.global = f.get_or<bool>("image_global", false);
  d.text.max_length = f.get_or<int64_t>("tokenizer_model_max_length", 2048);
  if (f.has("mgm")) {
    read_own_fields(f.sub("mgm"), d);
  } else if (d.model.convnext.path.empty()) {
    d.model.hr_encoder = HrEncoder::kNone;
  } else {
    d.model.hr_encoder = convnext_by_name(d.model.convnext.path, source);
    d.image.hr_size = f.get<int64_t>("image_size_aux");
  }
  return d;
}

}  // namespace mgm
