#include "checkpoint/mm_projector_file.h"

#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

using MmProjectorFileTest = FilesTest;

std::shared_ptr<const OverlaySource> written(const fs::path& path,
                                             const std::vector<std::string>& names,
                                             bool aux_tower) {
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) specs.push_back({name, at::kBFloat16, {3}});
  write_torch_file(path, specs, [](const std::string&) { return at::ones({3}, at::kBFloat16); });
  return open_projector_file(path, aux_tower);
}

const std::vector<std::string> kModel = {
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.mm_projector.0.weight",
    "model.mm_projector.2.bias",
    "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
    "model.vision_tower_aux.vision_stages.1.blocks.0.gamma",
    "model.vision_tower_aux.vision_stem.0.weight",
    "model.vlm_uni_query_projector.1.bias"};

TEST_F(MmProjectorFileTest, KeepsProjectorMiningAndTowers) {
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < kModel.size(); ++i) {
    specs.push_back({kModel[i], at::kFloat, {static_cast<int64_t>(i) + 1}});
  }
  const auto get = [&](const std::string& name) {
    const auto at = std::find(kModel.begin(), kModel.end(), name) - kModel.begin();
    return numbered({at + 1}, at, at::kFloat);
  };
  const fs::path path = folder_ / "mm_projector.bin";
  write_projector_file(path, specs, get);
  const auto with_aux = open_projector_file(path, true);
  EXPECT_EQ(with_aux->names(), std::vector<std::string>(kModel.begin() + 3, kModel.end()));
  EXPECT_TRUE(with_aux->dropped().empty());
  for (const std::string& name : with_aux->names()) expect_same(with_aux->read(name), get(name));
  const auto without = open_projector_file(path, false);
  EXPECT_EQ(without->names().size(), 4u);
  EXPECT_EQ(without->dropped().size(), 2u);
  specs.resize(3);
  expect_checkpoint_error([&] { write_projector_file(path, specs, get); }, {"no parameter"});
}

TEST_F(MmProjectorFileTest, OtherPrefixes) {
  const auto source =
      written(folder_ / "p.bin",
              {"module.base_model.model.model.mm_projector.0.weight",
               "module.model.vlm_uni_aux_projector.0.bias",
               "vision_tower.vision_tower.vision_model.post_layernorm.bias",
               "model.embed_tokens.weight", "not_vlm_uni_at_all", "model.vision_resampler.x"},
              true);
  EXPECT_EQ(source->names(), (std::vector<std::string>{
                                 "model.mm_projector.0.weight",
                                 "model.vision_tower.vision_tower.vision_model.post_layernorm.bias",
                                 "model.vlm_uni_aux_projector.0.bias"}));
  EXPECT_EQ(source->dropped().size(), 3u);
}

TEST_F(MmProjectorFileTest, TheProjectorsOwnDict) {
  const std::vector<std::string> ours = {"model.mm_projector.0.bias", "model.mm_projector.0.weight",
                                         "model.mm_projector.2.weight"};
  EXPECT_EQ(written(folder_ / "a.bin", {"0.weight", "0.bias", "2.weight"}, false)->names(), ours);
  EXPECT_EQ(written(folder_ / "b.bin", {"model.0.weight", "model.0.bias", "model.2.weight"}, false)
                ->names(),
            ours);
  EXPECT_EQ(written(folder_ / "c.bin", {"weight"}, false)->names(),
            std::vector<std::string>{"model.mm_projector.weight"});
  expect_checkpoint_error(
      [&] { written(folder_ / "d.bin", {"0.weight", "model.mm_projector.0.weight"}, false); },
      {"are both 'model.mm_projector.0.weight'"});
}

}  // namespace
}  // namespace mgm
