#include "assemble/tower_config.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "assemble/hf_config.h"
#include "assemble/json_fields.h"
#include "assemble/published_weights.h"
#include "config/writer.h"

namespace mgm {
namespace {

// Means and deviations that have been through fp32 are the same.
void read_triple(const JsonFields& f, const char* key, std::vector<double>& out) {
  if (!f.has(key)) return;
  const auto values = f.get<std::vector<double>>(key);
  const bool same = std::equal(values.begin(), values.end(), out.begin(), out.end(),
                               [](double a, double b) { return std::abs(a - b) < 1e-6; });
  if (!same) out = values;
}

class Comparison {
 public:
  explicit Comparison(const RunConfig& ours) : ours_(ours) {}

  // Lets `read` put what `file` says into a copy of the config, if the file is there.
  template <class Read>
  void with(const fs::path& file, const Read& read) {
    if (!fs::exists(file)) return;
    RunConfig theirs = ours_;
    const Json json = read_config_json(file);
    read(JsonFields(json, file.string()), theirs);
    for (const ConfigDifference& d : diff(ours_, theirs)) {
      add(d.key, cat("is ", d.a.value_or("not there"), ", but ", file.string(), " has ",
                     d.b.value_or("none"), "; write that"));
    }
  }
  void add(const std::string& key, const std::string& message) {
    problems_.push_back({key, message});
  }
  const std::vector<ConfigProblem>& problems() const { return problems_; }

 private:
  const RunConfig& ours_;
  std::vector<ConfigProblem> problems_;
};

// A whole model, as `mgm export` writes it and as it was published (without "mgm").
void read_published(const JsonFields& f, RunConfig& out) {
  if (!f.has("mm_vision_tower")) return;
  ModelConfig& m = out.model;
  VisionTowerConfig& tower = m.vision_tower;
  tower.select_layer = f.get_or<int64_t>("mm_vision_select_layer", tower.select_layer);
  tower.select_feature = read_select_feature(f, tower.select_feature);
  m.projector.type = f.get_or<std::string>("mm_projector_type", m.projector.type);
  if (!f.has("mgm")) return;
  const ModelDescription d = read_hf_config(f.json(), f.source());
  const std::string path = tower.path;
  tower = d.model.vision_tower;
  tower.path = path;
  if (m.hr_encoder != HrEncoder::kNone && d.model.hr_encoder != HrEncoder::kNone) {
    m.convnext.depths = d.model.convnext.depths;
    m.convnext.dims = d.model.convnext.dims;
    m.convnext.norm_eps = d.model.convnext.norm_eps;
  }
  const JsonFields own = f.sub("mgm");
  read_triple(own, "image_mean", out.image.mean);
  read_triple(own, "image_std", out.image.std);
}

constexpr const char* kTowerPath = "model.vision_tower.path";

void read_clip(const JsonFields& whole, RunConfig& out, Comparison& comparison) {
  if (whole.has("mm_vision_tower")) return read_published(whole, out);
  const bool both = whole.get_or<std::string>("model_type", "") == "clip";  // the text half too
  const bool apart = whole.has("vision_config");
  const JsonFields f =
      apart || both
          ? JsonFields(whole.get_or<Json>("vision_config", Json::object()), whole.source())
          : whole;
  const auto type = f.get_or<std::string>("model_type", "clip_vision_model");
  const auto act = f.get_or<std::string>("hidden_act", "quick_gelu");
  if (type != "clip_vision_model") {
    comparison.add(kTowerPath, cat(f.source(), " has model_type ", type,
                                   ", which is no CLIP; the tower has to be a clip_vision_model"));
    return;
  }
  if (act != "quick_gelu") {
    comparison.add(kTowerPath,
                   cat(f.source(), " has hidden_act ", act,
                       ", but the tower is computed with quick_gelu and no other; take a ",
                       "CLIP that was trained with it, such as those of OpenAI"));
  }
  VisionTowerConfig& v = out.model.vision_tower;
  v.image_size = f.get_or<int64_t>("image_size", 224);
  v.patch_size = f.get_or<int64_t>("patch_size", 32);
  v.hidden_size = f.get_or<int64_t>("hidden_size", 768);
  v.intermediate_size = f.get_or<int64_t>("intermediate_size", 3072);
  v.num_layers = f.get_or<int64_t>("num_hidden_layers", 12);
  v.num_heads = f.get_or<int64_t>("num_attention_heads", 12);
  v.norm_eps = f.get_or<double>("layer_norm_eps", 1e-5);
}

void read_preprocessor(const JsonFields& f, RunConfig& out, Comparison& comparison) {
  const auto expect = [&](bool same, const char* key, const char* always) {
    if (same) return;
    comparison.add(kTowerPath,
                   cat(f.source(), " has ", key, " ", shown(f.get<Json>(key).dump()),
                       ", but pictures are always ", always, "; take a CLIP that was trained so"));
  };
  expect(f.get_or<bool>("do_resize", true), "do_resize", "resized");
  expect(f.get_or<int64_t>("resample", 3) == 3, "resample", "resized by 3, bicubic");
  expect(f.get_or<bool>("do_rescale", true), "do_rescale", "divided by 255");
  expect(std::abs(f.get_or<double>("rescale_factor", 1. / 255) * 255 - 1) < 1e-6, "rescale_factor",
         "divided by 255");
  expect(f.get_or<bool>("do_normalize", true), "do_normalize", "normalised");
  expect(f.get_or<std::string>("image_processor_type", "CLIP").starts_with("CLIP"),
         "image_processor_type", "processed as CLIPImageProcessor does");
  read_triple(f, "image_mean", out.image.mean);
  read_triple(f, "image_std", out.image.std);
  if (!f.has("crop_size") || !f.get_or<bool>("do_center_crop", true)) return;
  const bool number = f.get<Json>("crop_size").is_number();
  int64_t& side = out.model.vision_tower.image_size;
  side = number ? f.get<int64_t>("crop_size") : f.sub("crop_size").get_or<int64_t>("height", side);
}

void read_open_clip(const JsonFields& f, RunConfig& out) {
  const std::map<std::string, HrEncoder> known = {
      {"convnext_base", HrEncoder::kConvnextBase},
      {"convnext_large", HrEncoder::kConvnextLarge},
      {"convnext_xxlarge", HrEncoder::kConvnextXxlarge}};
  if (f.has("model_cfg") && f.sub("model_cfg").has("vision_cfg")) {
    const JsonFields vision = f.sub("model_cfg").sub("vision_cfg");
    const auto it = known.find(vision.get_or<std::string>("timm_model_name", ""));
    if (it != known.end()) {
      RunConfig preset = out;
      preset.model.hr_encoder = it->second;
      resolve_and_check(preset);  // fills the sizes
      out.model.convnext = preset.model.convnext;
    }
  }
  if (!f.has("preprocess_cfg")) return;
  read_triple(f.sub("preprocess_cfg"), "mean", out.image.mean);
  read_triple(f.sub("preprocess_cfg"), "std", out.image.std);
}

}  // namespace

std::vector<ConfigProblem> tower_problems(const RunConfig& config) {
  if (config.model.init != ModelInit::kPretrained) return {};
  Comparison comparison(config);
  if (!config.model.path.empty()) {
    comparison.with(fs::path(config.model.path) / "config.json", read_published);
  }
  const TowerDirs towers = tower_dirs(config.model);
  if (!towers.vision_tower.empty()) {
    comparison.with(towers.vision_tower / "config.json",
                    [&](const JsonFields& f, RunConfig& out) { read_clip(f, out, comparison); });
    comparison.with(
        towers.vision_tower / "preprocessor_config.json",
        [&](const JsonFields& f, RunConfig& out) { read_preprocessor(f, out, comparison); });
  }
  if (!towers.convnext.empty()) {
    comparison.with(towers.convnext / "open_clip_config.json", read_open_clip);
  }
  return comparison.problems();
}

}  // namespace mgm
