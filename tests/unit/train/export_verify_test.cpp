// What `mgm export --verify` compares: it passes over the directory as written, and over no other.
#include "train/export_verify.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "tiny_model.h"

namespace mgm {
namespace {

constexpr double kTolerance = 1e-5;  // as export_run.cpp takes for fp32

class ExportVerify : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    tokenizer_ = load_tokenizer(MGM_SOURCE_DIR "/data/embedded/tokenizer");
    RunConfig config = tiny_config();
    config.model.llm.vocab_size = tokenizer_->vocab_size();
    tiny_ = std::make_unique<TinyModel>(config);
    for (const Param* param : tiny_->params) {
      values_[param->spec.name] = param->value.to(at::kFloat).clone();
    }
    description_ = {config.model, config.image, config.text};
    dir_ = fs::temp_directory_path() / cat("mgm_export_verify_", ::getpid());
  }
  void TearDown() override { fs::remove_all(dir_); }

  // With `factor` times one element of the weight `changed`.
  void write(const std::string& changed = "", double factor = 1) {
    ModelContent content{description_, tiny_->params, {}, *tokenizer_, {}};
    content.value = [&](Param& param) {
      at::Tensor value = values_.at(param.spec.name).clone();
      if (param.spec.name == changed) value.view(-1)[0] *= factor;
      return value;
    };
    HfDirectoryOptions options;
    options.replace = true;
    write_model(dir_, content, at::kFloat, GetParam(), options);
  }
  ExportCheck verify() const {
    const auto value = [&](Param& param) { return values_.at(param.spec.name); };
    return verify_export(dir_, description_, *tokenizer_, value, GetParam(), kTolerance);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TinyModel> tiny_;
  std::map<std::string, at::Tensor> values_;
  ModelDescription description_;
  fs::path dir_;
};
INSTANTIATE_TEST_SUITE_P(Parts, ExportVerify, testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "LanguageModel" : "Whole");
});

TEST_P(ExportVerify, PassesOverWhatWasWritten) {
  write();
  const ExportCheck check = verify();
  EXPECT_GT(check.rows, 5);
  EXPECT_EQ(check.vocab, tokenizer_->vocab_size());
  EXPECT_LE(check.relative_l2, 1e-6);
}

TEST_P(ExportVerify, RefusesAWeightThatDiffers) {
  std::vector<std::string> changed = {"lm_head.weight", "model.layers.1.mlp.down_proj.weight"};
  if (!GetParam()) changed.push_back("model.mm_projector.0.weight");
  for (const std::string& name : changed) {
    write(name, 1.5);
    try {
      verify();
      ADD_FAILURE() << name << " was not seen";
    } catch (const CheckpointError& e) {
      EXPECT_NE(std::string(e.what()).find("logits differ"), std::string::npos) << e.what();
    }
  }
}

TEST_P(ExportVerify, RefusesWhatCannotBeLoaded) {
  write("lm_head.weight", NAN);
  EXPECT_THROW(verify(), CheckpointError);
  fs::remove(dir_ / "config.json");
  EXPECT_THROW(verify(), CheckpointError);
}

// Zeros equal zeros, and say nothing of the weights.
TEST_P(ExportVerify, RefusesLogitsThatSayNothing) {
  for (const auto& [value, words] : {std::pair(0.0, "are all zero"), {3e38, "are not finite"}}) {
    values_.at("lm_head.weight").fill_(value);
    write();
    try {
      verify();
      ADD_FAILURE() << "lm_head of " << value;
    } catch (const CheckpointError& e) {
      EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace mgm
