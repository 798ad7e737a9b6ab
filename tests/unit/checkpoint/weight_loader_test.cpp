#include "checkpoint/weight_loader.h"

#include <cmath>

#include "checkpoint/tensor_writer.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class WeightLoaderTest : public FilesTest {
 protected:
  void declare(const std::string& name, std::vector<int64_t> shape, at::Tensor value = {}) {
    owned_.push_back(std::make_unique<Param>());
    owned_.back()->spec.name = name;
    owned_.back()->spec.shape = std::move(shape);
    owned_.back()->value = std::move(value);
    params_.push_back(owned_.back().get());
  }
  SourcePtr source(const std::map<std::string, at::Tensor>& tensors) {
    write_safetensors(folder_ / "m.safetensors", tensors);
    return open_safetensors(folder_ / "m.safetensors");
  }

  std::vector<std::unique_ptr<Param>> owned_;
  std::vector<Param*> params_;
};

TEST_F(WeightLoaderTest, CopiesAndBinds) {
  at::Tensor bound = at::zeros({3, 5}, at::kBFloat16).requires_grad_();
  const void* storage = bound.data_ptr();
  declare("bound", {3, 5}, bound);
  declare("same", {7});
  declare("converted", {2});
  declare("scalar", {});
  const at::Tensor fp32 = numbered({3, 5}, 1, at::kFloat), half = numbered({2}, 3, at::kHalf);
  const LoadReport report = load_weights(
      params_, *source({{"bound", fp32},
                        {"same", numbered({7}, 2, at::kFloat)},
                        {"converted", half},
                        {"scalar", numbered({}, 4, at::kDouble)},
                        {"model.layers.3.self_attn.rotary_emb.inv_freq", at::ones({4})},
                        {"vision_model.embeddings.position_ids", at::ones({1, 5}, at::kLong)}}));
  EXPECT_EQ(report.loaded, 4);
  EXPECT_EQ(report.converted, 3);
  EXPECT_EQ(report.bytes, 60u + 28 + 4 + 8);
  EXPECT_EQ(report.ignored.size(), 2u);
  EXPECT_EQ(params_[0]->value.data_ptr(), storage);
  expect_same(params_[0]->value.detach(), fp32.to(at::kBFloat16));
  expect_same(params_[1]->value, numbered({7}, 2, at::kFloat));
  expect_same(params_[2]->value, half.to(at::kFloat));
  expect_same(params_[3]->value, numbered({}, 4, at::kFloat));
}

TEST_F(WeightLoaderTest, SinkGetsTheFilesOwnType) {
  declare("a", {3}, at::zeros({3}, at::kBFloat16));
  std::vector<std::string> got;
  load_weights(params_, *source({{"a", numbered({3}, 1, at::kFloat)}}), {},
               [&](Param& param, int64_t, const at::Tensor& value) {
                 got.push_back(param.spec.name);
                 EXPECT_EQ(value.scalar_type(), at::kFloat);
               });
  EXPECT_EQ(got, std::vector<std::string>{"a"});
  expect_same(params_[0]->value, at::zeros({3}, at::kBFloat16));
}

TEST_F(WeightLoaderTest, TellsEveryProblemAtOnceAndTouchesNothing) {
  declare("model.norm.weight", {4}, at::zeros({4}));
  declare("model.layers.0.mlp.up_proj.weight", {6, 4});
  declare("model.layers.0.self_attn.k_proj.weight", {4, 4});
  declare("model.layers.1.mlp.up_proj.weight", {6, 4});
  const SourcePtr s = source({{"model.norm.weight", at::ones({4})},
                              {"model.layers.0.mlp.up_proj.weight", at::ones({6, 4}, at::kByte)},
                              {"model.layers.0.self_attn.k_proj.weight", at::ones({2, 4})},
                              {"model.layers.2.mlp.up_proj.weight", at::ones({6, 4})}});
  expect_checkpoint_error(
      [&] { load_weights(params_, *s); },
      {"m.safetensors", "4 problems", "the model of 4 tensors", "1 missing:",
       "model.layers.1.mlp.up_proj.weight", "1 unexpected:", "model.layers.2.mlp.up_proj.weight",
       "1 of another shape:", "[2, 4]", "[4, 4] in the model", "num_key_value_heads",
       "1 of a type that is no weight:", "U8", "quantised"});
  expect_same(params_[0]->value, at::zeros({4}));
}

TEST_F(WeightLoaderTest, LikelyCauses) {
  const auto cause = [&](const std::string& name, std::vector<int64_t> want,
                         std::vector<int64_t> have, const std::string& part) {
    owned_.clear();
    params_.clear();
    declare(name, std::move(want));
    const SourcePtr s = source({{name, at::ones(have)}});
    expect_checkpoint_error([&] { load_weights(params_, *s); }, {part});
  };
  const std::string clip = "model.vision_tower.vision_tower.vision_model.";
  cause(
      clip + "embeddings.position_embedding.weight", {577, 8}, {257, 8},
      "16 x 16 patches and the class token, the model 24 x 24 patches and the class token: a CLIP "
      "of another image or patch size");
  cause(clip + "encoder.layers.0.mlp.fc1.weight", {4, 8}, {4, 9}, "a CLIP of another size");
  cause("model.vision_tower_aux.vision_stem.0.weight", {2, 3, 4, 4}, {4, 3, 4, 4}, "ConvNeXt");
  cause("model.embed_tokens.weight", {100, 4}, {103, 4}, "a vocabulary of 103 in the file, of 100");
  cause("model.mm_projector.0.weight", {4, 8}, {4, 9}, "another vision tower");
  cause("model.mm_projector.2.weight", {4, 4}, {5, 5}, "another language model");
  cause("model.vlm_uni_aux_projector.0.weight", {4}, {5}, "another pair of towers");
  cause("model.norm.weight", {4}, {5}, "hidden_size");
}

TEST_F(WeightLoaderTest, AThousandProblemsAreCut) {
  for (int i = 0; i < 1000; ++i) declare(cat("p", i), {1});
  const SourcePtr s = source({});
  expect_checkpoint_error([&] { load_weights(params_, *s); },
                          {"1000 missing", "p11", "... and 988 more"});
}

TEST_F(WeightLoaderTest, MissingAndUnexpectedMayBeAllowed) {
  declare("a", {1}, at::zeros({1}));
  declare("b", {1}, at::zeros({1}));
  LoadOptions options;
  options.allow_unexpected = true;
  options.may_lack = [](const Param& param) { return param.spec.name == "b"; };
  const LoadReport report =
      load_weights(params_, *source({{"a", at::ones({1})}, {"c", at::ones({1})}}), options);
  EXPECT_EQ(report.loaded, 1);
  EXPECT_EQ(report.missing, std::vector<std::string>{"b"});
  EXPECT_EQ(report.unexpected, std::vector<std::string>{"c"});
}

TEST_F(WeightLoaderTest, MissingAndUnusedComeTogether) {
  declare("a", {1}, at::zeros({1}));
  declare("b", {1}, at::zeros({1}));
  declare("c", {1}, at::zeros({1}));
  LoadOptions options;
  options.may_lack = [](const Param& param) { return param.spec.name == "b"; };
  options.unused = {"other.bin: d"};
  options.advice = "look again";
  const SourcePtr s = source({{"a", at::ones({1})}, {"e", at::ones({1})}});
  expect_checkpoint_error([&] { load_weights(params_, *s, options); },
                          {"3 problems", "1 missing:\n  c", "2 unexpected:", "e in ",
                           "\n  other.bin: d", "\nlook again"});
  expect_same(params_[0]->value, at::zeros({1}));
  // Advice is for what is missing.
  params_.pop_back();
  try {
    load_weights(params_, *s, options);
    ADD_FAILURE() << "two tensors are unexpected";
  } catch (const CheckpointError& e) {
    EXPECT_EQ(std::string(e.what()).find("look again"), std::string::npos);
  }
}

TEST_F(WeightLoaderTest, TiedHead) {
  const at::Tensor table = numbered({5, 3}, 1, at::kFloat), other = numbered({5, 3}, 2, at::kFloat);
  declare("model.embed_tokens.weight", {5, 3});
  load_weights(params_, *source({{"model.embed_tokens.weight", table}}));
  const LoadReport report = load_weights(
      params_, *source({{"model.embed_tokens.weight", table}, {"lm_head.weight", table}}));
  EXPECT_EQ(report.ignored, std::vector<std::string>{"lm_head.weight"});
  for (const at::Tensor& head : {other, table.to(at::kHalf), numbered({4, 3}, 1, at::kFloat)}) {
    const SourcePtr s = source({{"model.embed_tokens.weight", table}, {"lm_head.weight", head}});
    expect_checkpoint_error([&] { load_weights(params_, *s); },
                            {"lm_head.weight: differs from model.embed_tokens.weight"});
  }
  declare("lm_head.weight", {5, 3});
  const SourcePtr s = source({{"model.embed_tokens.weight", table}});
  expect_checkpoint_error([&] { load_weights(params_, *s); }, {"1 missing", "tie_word_embeddings"});
}

TEST_F(WeightLoaderTest, NamesTensorsThatAreNotFinite) {
  at::Tensor nan = at::ones({3, 1000001});  // the last element, in a second piece
  nan[2][1000000] = std::nan("");
  at::Tensor inf = at::ones({3}, at::kBFloat16);
  inf[1] = -INFINITY;
  declare("a", nan.sizes().vec());
  declare("b", {3});
  declare("c", {3});
  const SourcePtr s = source({{"a", nan}, {"b", inf}, {"c", at::ones({3}, at::kHalf)}});
  expect_checkpoint_error([&] { load_weights(params_, *s); },
                          {"2 with NaN or infinity", "a in ", "1 NaN and 0 infinite of 3000003",
                           "b in ", "0 NaN and 1 infinite of 3"});
  LoadOptions options;
  options.check_finite = false;
  EXPECT_EQ(load_weights(params_, *s, options).loaded, 3);
}

TEST_F(WeightLoaderTest, RefusesNanOfEveryTypeAtEveryPlace) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    // The largest and the smallest finite values have neighbours that are not.
    at::Tensor good = numbered({3, 70}, 1, type);
    good[0][0] = type == at::kHalf ? 65504 : 1e38;
    good[0][1] = 1e-40;
    declare("a", {3, 70});
    load_weights(params_, *source({{"a", good}}));
    for (const int64_t place : {0, 1, 63, 64, 208, 209}) {
      for (const double value : {std::nan(""), double{INFINITY}, -double{INFINITY}}) {
        at::Tensor bad = good.clone();
        bad.view(-1)[place] = value;
        EXPECT_THROW(load_weights(params_, *source({{"a", bad}})), CheckpointError)
            << type << " " << place << " " << value;
      }
    }
    params_.clear();
  }
}

TEST_F(WeightLoaderTest, NoParameters) { EXPECT_EQ(load_weights({}, *source({})).loaded, 0); }

}  // namespace
}  // namespace mgm
