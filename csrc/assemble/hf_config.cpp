#include "assemble/hf_config.h"

#include <numeric>

#include "assemble/json_fields.h"
#include "base/log.h"
#include "config/llm_arch.h"
#include "text/conversation.h"

namespace mgm {
namespace {

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

std::string template_of(const Json& value, const std::string& source) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_object()) {
    throw CheckpointError(source, ": field 'template' must be a name or {NAME: {...}}");
  }
  return value.dump();
}

void read_own_fields(const JsonFields& own, ModelDescription& d) {
  const JsonFields tower = own.sub("vision_tower");
  VisionTowerConfig& v = d.model.vision_tower;
  tower.read("image_size", v, v.image_size);
  tower.read("patch_size", v, v.patch_size);
  tower.read("hidden_size", v, v.hidden_size);
  tower.read("intermediate_size", v, v.intermediate_size);
  tower.read("num_hidden_layers", v, v.num_layers);
  tower.read("num_attention_heads", v, v.num_heads);
  tower.read("layer_norm_eps", v, v.norm_eps);
  if (own.has("convnext")) {
    const JsonFields convnext = own.sub("convnext");
    d.model.hr_encoder = HrEncoder::kConvnext;
    ConvnextConfig& c = d.model.convnext;
    convnext.read("depths", c, c.depths);
    convnext.read("dims", c, c.dims);
    convnext.read("norm_eps", c, c.norm_eps);
  } else {
    d.model.hr_encoder = HrEncoder::kNone;
  }
  own.read("hr_size", d.image, d.image.hr_size);
  if (!own.has("hr_source")) throw CheckpointError(own.source(), ": field 'hr_source' is missing");
  d.image.hr_source = own.choice<HrSource>(
      "hr_source", {{"native", HrSource::kNative}, {"upsampled_lr", HrSource::kUpsampledLr}}, {});
  own.read("image_mean", d.image, d.image.mean);
  own.read("image_std", d.image, d.image.std);
  d.text.template_name = template_of(own.get<Json>("template"), own.source());
}

// The reference puts tokens of their own around or for an image, in prompts and vocabulary.
void refuse_image_tokens(const JsonFields& f) {
  for (const char* key : {"mm_use_im_start_end", "mm_use_im_patch_token"}) {
    if (!f.get_or<bool>(key, false)) continue;
    throw CheckpointError(f.source(), ": ", key,
                          " true is not supported: an image stands in the prompt without tokens "
                          "around it. Take a model trained with false, as all published "
                          "Mini-Gemini are");
  }
}

// A name, or the row itself.
OrderedJson template_json(const std::string& name) {
  if (name.find(".yaml:") == name.npos && !name.starts_with("{")) return name;
  try {
    return OrderedJson::parse(template_text(load_template(name)));
  } catch (const ConfigError& e) {
    log::warn(cat("config.json gets the chat template's name alone: ", e.what()));
    return name;
  }
}

}  // namespace

Json read_config_json(const fs::path& path) {
  try {
    return read_json(path);
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
}

OrderedJson to_hf_config(const ModelDescription& d, const SpecialIds& ids,
                         const std::string& dtype) {
  OrderedJson j = to_llm_config(d.model.llm, ids, dtype);
  const std::string name = llm_traits(d.model.llm.arch).class_name;
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
  own["template"] = template_json(d.text.template_name);
  return j;
}

SelectFeature read_select_feature(const JsonFields& fields, SelectFeature fallback) {
  return fields.choice<SelectFeature>(
      "mm_vision_select_feature",
      {{"patch", SelectFeature::kPatch}, {"cls_patch", SelectFeature::kClsPatch}}, fallback);
}

ModelDescription read_hf_config(const Json& json, const std::string& source) {
  const JsonFields f(json, source);
  ModelDescription d;
  read_llm_config(json, source, d.model.llm);
  if (!f.has("mm_vision_tower")) {
    throw CheckpointError(
        source, ": no mm_vision_tower: this is a language model, not a Mini-Gemini model");
  }
  refuse_image_tokens(f);
  d.model.vision_tower.path = f.get<std::string>("mm_vision_tower");
  d.model.convnext.path = f.get_or<std::string>("mm_vision_tower_aux", "");
  d.model.projector.type = f.get<std::string>("mm_projector_type");
  f.read("mm_vision_select_layer", d.model.vision_tower, d.model.vision_tower.select_layer);
  d.model.vision_tower.select_feature = read_select_feature(f, SelectFeature::kPatch);
  d.image.aspect = f.choice<ImageAspect>(
      "image_aspect_ratio", {{"pad", ImageAspect::kPad}, {"square", ImageAspect::kSquare}},
      ImageAspect::kPad);
  f.read_or("image_grid", d.image, d.image.grid, int64_t{1});
  d.image.global = f.get_or<bool>("image_global", false);
  f.read_or("tokenizer_model_max_length", d.text, d.text.max_length, int64_t{2048});
  if (f.has("mgm")) {
    read_own_fields(f.sub("mgm"), d);
  } else if (d.model.convnext.path.empty()) {
    d.model.hr_encoder = HrEncoder::kNone;
  } else {
    d.model.hr_encoder = convnext_by_name(d.model.convnext.path, source);
    f.read("image_size_aux", d.image, d.image.hr_size);
  }
  RunConfig config;
  config.model = d.model;
  config.image = d.image;
  config.text = d.text;
  check_described(std::move(config), source, {"model.", "image."});
  return d;
}

}  // namespace mgm
