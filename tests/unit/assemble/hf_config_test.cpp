// A whole model's config.json: what is refused by the limits and rules of the config schema, and
// chat templates that go in whole.
#include "assemble/hf_config.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "text/conversation.h"

namespace mgm {
namespace {

ModelDescription small() {
  ModelDescription d;
  d.model.hr_encoder = HrEncoder::kConvnext;
  d.model.convnext.depths = {1, 2, 1, 1};
  d.model.convnext.dims = {6, 10, 12, 14};
  VisionTowerConfig& v = d.model.vision_tower;
  v.image_size = 42, v.patch_size = 14, v.hidden_size = 24, v.intermediate_size = 40;
  v.num_layers = 3, v.num_heads = 2;
  d.image.hr_size = 96;
  return d;
}

Json written(const ModelDescription& d) {
  return Json::parse(to_hf_config(d, {1, 2, 0}, "float32").dump());
}

std::string refusal_of_model(const Json& json) {
  try {
    read_hf_config(json, "dir/config.json");
  } catch (const CheckpointError& e) {
    return e.what();
  }
  return "no error";
}

TEST(HfConfig, WrittenAndReadAgainIsTheSame) {
  const Json json = written(small());
  EXPECT_EQ(written(read_hf_config(json, "x")), json);
}

TEST(HfConfig, WordsAreThoseThatAreKnown) {
  for (const auto& [place, known] : {std::pair{"/mgm/hr_source", "native, upsampled_lr"},
                                     {"/image_aspect_ratio", "pad, square"},
                                     {"/mm_vision_select_feature", "patch, cls_patch"}}) {
    Json json = written(small());
    json[Json::json_pointer(place)] = "Native";
    const std::string message = refusal_of_model(json), key = std::string(place);
    EXPECT_EQ(message,
              cat("dir/config.json", key[1] == 'm' && key[2] == 'g' ? " mgm" : "", ": field '",
                  key.substr(key.rfind('/') + 1), "' is 'Native'; known: ", known));
  }
  Json json = written(small());
  json["mgm"].erase("hr_source");
  EXPECT_NE(refusal_of_model(json).find("field 'hr_source' is missing"), std::string::npos);
}

TEST(HfConfig, TokensOfTheirOwnAroundImagesAreRefused) {
  for (const char* key : {"mm_use_im_start_end", "mm_use_im_patch_token"}) {
    Json json = written(small());
    json[key] = true;
    EXPECT_NE(refusal_of_model(json).find(cat("dir/config.json: ", key, " true")),
              std::string::npos)
        << refusal_of_model(json);
  }
}

TEST(HfConfig, NumbersObeyTheSchema) {
  const auto refused = [](const std::string& place, const Json& value, const std::string& range) {
    Json json = written(small());
    json[Json::json_pointer(place)] = value;
    const std::string message = refusal_of_model(json), key = place.substr(place.rfind('/') + 1);
    for (const std::string& part : {std::string("dir/config.json"), "'" + key, range}) {
      EXPECT_NE(message.find(part), message.npos) << place << " " << value << ": " << message;
    }
  };
  for (const Json& value : {Json(0), Json(-1), Json(int64_t{1} << 31), Json(int64_t{1} << 62)}) {
    refused("/image_grid", value, "between 1 and 16");
  }
  for (const char* key : {"image_size", "patch_size", "hidden_size", "num_hidden_layers",
                          "num_attention_heads", "intermediate_size"}) {
    for (const Json& value : {Json(0), Json(-3), Json(int64_t{1} << 62)}) {
      refused(cat("/mgm/vision_tower/", key), value, "between 1 and");
    }
    refused(cat("/mgm/vision_tower/", key), 1e30, "whole number");
    refused(cat("/mgm/vision_tower/", key), 2.5, "whole number");
  }
  refused("/mm_vision_select_layer", 1e30, "whole number");
  refused("/mm_vision_select_layer", -99999, "between -4097 and 4096");
  refused("/tokenizer_model_max_length", -1, "between 1 and");
  refused("/num_key_value_heads", 0, "between 1 and");
  refused("/mgm/hr_size", 0, "between 32 and");
  refused("/mgm/convnext/depths", Json::array({1, 0, 1, 1}), "got 0");
  refused("/mgm/convnext/depths", Json::array({1, 1.5, 1, 1}), "1.5");
  refused("/mgm/image_std", Json::array({-1, 1, 1}), "got -1");
  refused("/mgm/image_mean", Json::array({1e300, 1, 1}), "between 0 and 1");
}

TEST(HfConfig, DescriptionsObeyTheRules) {
  Json json = written(small());
  json["mgm"]["image_std"] = {0, 0, 0};
  EXPECT_NE(refusal_of_model(json).find("image.std"), std::string::npos) << refusal_of_model(json);
  json = written(small());
  json["mgm"]["vision_tower"]["patch_size"] = 13;
  EXPECT_NE(refusal_of_model(json).find("not a multiple of patch_size 13"), std::string::npos);
  json = written(small());
  json["mgm"]["convnext"]["dims"] = {6, 10};
  EXPECT_NE(refusal_of_model(json).find("needs 4 stages, got 2"), std::string::npos);
}

TEST(HfConfig, ATemplateFromAFileGoesInWhole) {
  const fs::path file = fs::path(testing::TempDir()) / "mine.yaml";
  std::ofstream(file)
      << "mine:\n  begin: \"\xc2\xa7 \\\"x\\\"\\n\"\n  user_begin: 'Q: '\n  user_end: ''\n"
      << "  assistant_begin: 'A: '\n  assistant_prompt: 'A:'\n"
      << "  assistant_end: \"</s>\\u0001\"\n  stop: ['<|e|>']\n";
  ModelDescription d = small();
  d.text.template_name = file.string() + ":mine";
  const ConversationTemplate before = load_template(d.text.template_name);
  const Json json = written(d);
  EXPECT_EQ(json["mgm"]["template"]["mine"]["begin"], "\xc2\xa7 \"x\"\n");
  fs::remove(file);
  const ModelDescription again = read_hf_config(json, "x");
  const ConversationTemplate after = load_template(again.text.template_name);
  EXPECT_EQ(after.name, "mine");
  EXPECT_EQ(template_text(after), template_text(before));
  EXPECT_EQ(after.assistant_end, "</s>\x01");
  EXPECT_EQ(after.stop, std::vector<std::string>{"<|e|>"});
  EXPECT_FALSE(after.captions);
  EXPECT_EQ(written(again), json);  // and from one export into the next
  EXPECT_EQ(written(small())["mgm"]["template"], "v1");
}

TEST(HfConfig, FilesThatAreNoJson) {
  const fs::path file = fs::path(testing::TempDir()) / "config.json";
  for (const std::string& text :
       {std::string("{"), std::string(200000, '['), std::string("{\"a\": 1e999}")}) {
    std::ofstream(file) << text;
    EXPECT_THROW(read_config_json(file), CheckpointError);
  }
  std::ofstream(file) << "{\"a\": \"[[[\\\"[\", \"b\": [[1]]}";
  EXPECT_EQ(read_config_json(file)["b"][0][0], 1);
}

}  // namespace
}  // namespace mgm
