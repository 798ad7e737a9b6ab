// Files beside vision towers against a config; the formats themselves are transformers' own in
// tests/e2e/test_initial_weights.py.
#include "assemble/tower_config.h"

#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class TowerConfigTest : public FilesTest {
 protected:
  void SetUp() override {
    FilesTest::SetUp();
    config_.model.init = ModelInit::kPretrained;
    config_.model.llm.path = "llm";
    config_.model.vision_tower.path = folder_.string();
    config_.model.convnext.path = folder_.string();
  }
  void write(const std::string& file, const std::string& text) {
    write_file_atomic(folder_ / file, text);
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> out;
    for (const ConfigProblem& problem : tower_problems(config_)) out.push_back(problem.key);
    return out;
  }
  using Keys = std::vector<std::string>;

  RunConfig config_;
};

const char* kLarge336 =
    R"({"model_type": "clip", "hidden_size": 5, "vision_config": {"hidden_size": 1024,
        "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14}})";

TEST_F(TowerConfigTest, NoFilesSayNothing) { EXPECT_EQ(keys(), Keys{}); }

TEST_F(TowerConfigTest, TheDefaultsAreOpenAisLarge336) {
  write("config.json", kLarge336);
  write("preprocessor_config.json", R"({"crop_size": 336, "do_normalize": true, "image_mean":
        [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]})");
  EXPECT_EQ(keys(), Keys{});
  config_.model.vision_tower.num_heads = 8;
  config_.image.mean = {0, 0, 0};
  EXPECT_EQ(keys(), (Keys{"model.vision_tower.num_heads", "image.mean"}));
  config_.model.init = ModelInit::kRandom;  // nothing is read
  EXPECT_EQ(keys(), Keys{});
}

TEST_F(TowerConfigTest, WhatIsNotAppliedSaysNothing) {
  write("preprocessor_config.json", R"({"do_center_crop": false, "crop_size": 5})");
  EXPECT_EQ(keys(), Keys{});
}

TEST_F(TowerConfigTest, PicturesAreProcessedAsClipDoes) {
  const auto says = [&](const std::string& text) {
    write("preprocessor_config.json", "{" + text + "}");
    const auto problems = tower_problems(config_);
    return problems.empty() ? "" : problems.front().key + ": " + problems.front().message;
  };
  EXPECT_EQ(says(R"("do_resize": true, "resample": 3, "do_rescale": true, "do_normalize": true,
                    "rescale_factor": 0.00392156862745098, "feature_extractor_type":
                    "CLIPFeatureExtractor", "image_processor_type": "CLIPImageProcessorFast")"),
            "");
  for (const char* field :
       {"do_resize false", "resample 2", "do_rescale false", "rescale_factor 0.00784313725490196",
        "do_normalize false", "image_processor_type \"SiglipImageProcessor\""}) {
    const std::string text = field, key = text.substr(0, text.find(' '));
    const std::string message = says("\"" + key + "\": " + text.substr(key.size() + 1));
    for (const std::string& part :
         {std::string("model.vision_tower.path: "), "preprocessor_config.json has " + key}) {
      EXPECT_NE(message.find(part), message.npos) << field << ": " << message;
    }
  }
}

TEST_F(TowerConfigTest, OpenClip) {
  write("open_clip_config.json",
        R"({"model_cfg": {"vision_cfg": {"timm_model_name": "convnext_large"}}})");
  EXPECT_EQ(keys(), Keys{});  // which the defaults are
  write("open_clip_config.json",
        R"({"model_cfg": {"vision_cfg": {"timm_model_name": "convnext_base"}},
            "preprocess_cfg": {"mean": [0, 0, 0]}})");
  EXPECT_EQ(keys(), (Keys{"model.convnext.dims", "image.mean"}));
  config_.model.hr_encoder = HrEncoder::kNone;
  EXPECT_EQ(keys(), Keys{});
}

TEST_F(TowerConfigTest, WrongTypesAreNamed) {
  write("config.json", R"({"num_attention_heads": "many"})");
  expect_checkpoint_error([&] { tower_problems(config_); },
                          {"config.json", "'num_attention_heads'", "many"});
}

}  // namespace
}  // namespace mgm
