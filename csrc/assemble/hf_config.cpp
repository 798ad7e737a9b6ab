#include "assemble/hf_config.h"

#include <numeric>

#include "assemble/json_fields.h"
#include "config/llm_arch.h"

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

void read_own_fields(const JsonFields& own, ModelDescription& d) {
  const JsonFields tower = own.sub("vision_tower");
  VisionTowerConfig& v = d.model.vision_tower;
  v.image_size = tower.get<int64_t>("image_size");
  v.patch_size = tower.get<int64_t>("patch_size");
  v.hidden_size = tower.get<int64_t>("hidden_size");
  v.intermediate_size = tower.get<int64_t>("intermediate_size");
  v.num_layers = tower.get<int64_t>("num_hidden_layers");
  v.num_heads = tower.get<int64_t>("num_attention_heads");
  v.norm_eps = tower.get<double>("layer_norm_eps");
  if (own.has("convnext")) {
    const JsonFields convnext = own.sub("convnext");
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
  own["template"] = d.text.template_name;
  return j;
}

ModelDescription read_hf_config(const Json& json, const std::string& source) {
  const JsonFields f(json, source);
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
