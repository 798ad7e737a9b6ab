#include "checkpoint/tensor_source.h"

#include <fstream>

#include "checkpoint/name_maps.h"
#include "checkpoint/tensor_writer.h"
#include "formats/shard_index.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

using TensorSourceTest = FilesTest;
using Tensors = std::map<std::string, at::Tensor>;

Tensors some_tensors() {
  return {{"w", numbered({13, 7}, 1, at::kFloat)},
          {"half", numbered({5}, 2, at::kHalf)},
          {"bf", numbered({3, 1, 2}, 3, at::kBFloat16)},
          {"scalar", numbered({}, 4, at::kDouble)},
          {"empty", at::empty({0, 5})},
          {"ids", numbered({1, 9}, 5, at::kLong)},
          {"flag", at::ones({3}, at::kBool)},
          {"byte", numbered({11}, 6, at::kByte)}};
}

void write_torch(const fs::path& path, const Tensors& tensors) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, t] : tensors) specs.push_back({name, t.scalar_type(), t.sizes().vec()});
  write_torch_file(path, specs, [&](const std::string& name) { return tensors.at(name); });
}

void expect_holds(const TensorSource& source, const Tensors& tensors) {
  ASSERT_EQ(source.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(source.contains(name));
    EXPECT_EQ(source.info(name).shape, tensor.sizes().vec());
    EXPECT_EQ(source.info(name).type, tensor.scalar_type());
    EXPECT_EQ(source.info(name).bytes, tensor.nbytes());
    expect_same(source.read(name), tensor);
  }
}

TEST_F(TensorSourceTest, ReadsWhatWasWritten) {
  const Tensors tensors = some_tensors();
  write_safetensors(folder_ / "a.safetensors", tensors);
  expect_holds(*open_tensor_file(folder_ / "a.safetensors"), tensors);
  write_torch(folder_ / "a.bin", tensors);
  expect_holds(*open_tensor_file(folder_ / "a.bin"), tensors);
  write_safetensors(folder_ / "none.safetensors", Tensors{});
  EXPECT_TRUE(open_safetensors(folder_ / "none.safetensors")->names().empty());
}

// Views of devices' or transposed tensors are written as they look, not as they lie.
TEST_F(TensorSourceTest, WritesStridedTensors) {
  const at::Tensor strided = numbered({5, 4}, 0, at::kFloat).t();
  write_safetensors(folder_ / "s.safetensors", Tensors{{"s", strided}});
  expect_same(open_safetensors(folder_ / "s.safetensors")->read("s"), strided);
}

TEST_F(TensorSourceTest, ATensorOutlivesItsSource) {
  at::Tensor kept;
  {
    write_safetensors(folder_ / "a.safetensors", some_tensors());
    kept = open_safetensors(folder_ / "a.safetensors")->read("w");
  }
  expect_same(kept, some_tensors().at("w"));
}

TEST_F(TensorSourceTest, ReadsRanges) {
  const at::Tensor w = numbered({13, 7}, 1, at::kFloat);
  write_safetensors(folder_ / "a.safetensors", Tensors{{"w", w}});
  const SourcePtr source = open_safetensors(folder_ / "a.safetensors");
  std::vector<char> part(9);
  source->read_range("w", 50, part.size(), part.data());
  EXPECT_EQ(std::memcmp(part.data(), static_cast<char*>(w.data_ptr()) + 50, part.size()), 0);
  source->read_range("w", w.nbytes(), 0, nullptr);
  EXPECT_THROW(source->read_range("w", w.nbytes() - 1, 2, part.data()), InternalError);
}

// Foreign writers need not align; F32 at an odd position is copied into place.
TEST_F(TensorSourceTest, UnalignedTensors) {
  std::string file(8, '\0');
  const std::string json = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                           R"("b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  file[0] = static_cast<char>(json.size());
  const float values[2] = {1.5f, -2.0f};
  file += json + "x" + std::string(reinterpret_cast<const char*>(values), 8);
  write_file_atomic(folder_ / "u.safetensors", file);
  const at::Tensor b = open_safetensors(folder_ / "u.safetensors")->read("b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data_ptr()) % 4, 0u);
  expect_same(b, at::tensor({1.5f, -2.0f}));
}

TEST_F(TensorSourceTest, Refusals) {
  expect_checkpoint_error([&] { open_safetensors(folder_ / "no.safetensors"); },
                          {"no.safetensors", "cannot open"});
  write_file_atomic(folder_ / "empty.bin", "");
  expect_checkpoint_error([&] { open_tensor_file(folder_ / "empty.bin"); }, {"empty.bin"});
  write_safetensors(folder_ / "a.safetensors", some_tensors());
  const SourcePtr source = open_tensor_file(folder_ / "a.safetensors");
  expect_checkpoint_error([&] { source->info("x"); }, {"a.safetensors", "no tensor 'x'"});
  fs::resize_file(folder_ / "a.safetensors", fs::file_size(folder_ / "a.safetensors") - 1);
  expect_checkpoint_error([&] { open_tensor_file(folder_ / "a.safetensors"); }, {"cut"});
  EXPECT_THROW(write_safetensors(folder_ / "w.safetensors", {{"a", at::kFloat, {2}}},
                                 [](const std::string&) { return at::ones({3}); }),
               InternalError);
  EXPECT_FALSE(fs::exists(folder_ / "w.safetensors"));
  EXPECT_FALSE(fs::exists(folder_ / "w.safetensors.tmp"));
  EXPECT_THROW(write_safetensors(folder_ / "no" / "w.safetensors", some_tensors()), InternalError);
}

TEST_F(TensorSourceTest, ShardsAndTheirIndex) {
  const Tensors first = {{"a", numbered({3}, 1, at::kFloat)}, {"c", numbered({2}, 2, at::kFloat)}};
  const Tensors second = {{"b", numbered({5}, 3, at::kBFloat16)}};
  write_safetensors(folder_ / "1.safetensors", first);
  write_torch(folder_ / "2.bin", second);
  const auto open_with = [&](const std::map<std::string, std::string>& weight_map) {
    ShardIndex index;
    index.weight_map = weight_map;
    write_file_atomic(folder_ / "model.safetensors.index.json", make_shard_index(index));
    return open_model_dir(folder_);
  };
  Tensors all = first;
  all.insert(second.begin(), second.end());
  expect_holds(*open_with({{"a", "1.safetensors"}, {"b", "2.bin"}, {"c", "1.safetensors"}}), all);
  expect_checkpoint_error([&] { open_with({{"a", "1.safetensors"}, {"b", "2.bin"}}); },
                          {"c: in 1.safetensors, not in the index"});
  expect_checkpoint_error(
      [&] { open_with({{"a", "1.safetensors"}, {"b", "1.safetensors"}, {"c", "2.bin"}}); },
      {"disagree on 4", "b: not in 1.safetensors", "b: in 2.bin, the index says 1.safetensors"});
  expect_checkpoint_error([&] { open_with({{"a", "3.safetensors"}}); }, {"3.safetensors"});
}

TEST_F(TensorSourceTest, ModelDirectories) {
  expect_checkpoint_error([&] { open_model_dir(folder_ / "no"); }, {"no such folder"});
  expect_checkpoint_error([&] { open_model_dir(folder_); },
                          {"holds no weights", "pytorch_model.bin"});
  write_torch(folder_ / "open_clip_pytorch_model.bin", {{"x", at::ones({1})}});
  EXPECT_TRUE(open_model_dir(folder_)->contains("x"));
  fs::create_symlink("blobs/5f3a", folder_ / "model.safetensors");
  expect_checkpoint_error([&] { open_model_dir(folder_); },
                          {"model.safetensors: is a link to blobs/5f3a, which is not there"});
  fs::remove(folder_ / "model.safetensors");
  write_safetensors(folder_ / "model.safetensors", Tensors{{"y", at::ones({1})}});
  EXPECT_TRUE(open_model_dir(folder_)->contains("y"));
  // As transformers does: a whole file goes before an index, which may be left from other shards.
  write_file_atomic(folder_ / "model.safetensors.index.json", "{}");
  EXPECT_TRUE(open_model_dir(folder_)->contains("y"));
  write_file_atomic(folder_ / "adapter_config.json", "{}");
  EXPECT_TRUE(open_model_dir(folder_)->contains("y"));
  write_file_atomic(folder_ / "adapter_model.safetensors", "");
  expect_checkpoint_error([&] { open_model_dir(folder_); }, {"holds a model and an adapter"});
}

TEST_F(TensorSourceTest, Overlay) {
  const at::Tensor base = numbered({3}, 1, at::kFloat), over = numbered({4}, 2, at::kHalf);
  write_safetensors(folder_ / "base.safetensors",
                    Tensors{{"a", base}, {"b", base}, {"text.c", base}});
  write_safetensors(folder_ / "over.safetensors", Tensors{{"x.b", over}, {"x.d", over}});
  const SourcePtr low = open_safetensors(folder_ / "base.safetensors");
  const SourcePtr high = open_safetensors(folder_ / "over.safetensors");
  const NameMap no_text = [](const std::string& name) -> std::optional<std::string> {
    if (name.rfind("text.", 0) == 0) return std::nullopt;
    return name;
  };
  const NameMap strip = [](const std::string& name) { return name.substr(2); };
  const OverlaySource both({{low, no_text}, {high, strip}});
  EXPECT_EQ(both.names(), (std::vector<std::string>{"a", "b", "d"}));
  expect_same(both.read("a"), base);
  expect_same(both.read("b"), over);
  EXPECT_EQ(both.info("b").file, (folder_ / "over.safetensors").string());
  EXPECT_EQ(both.dropped(),
            std::vector<std::string>{(folder_ / "base.safetensors").string() + ": text.c"});
  EXPECT_EQ(both.covered(),
            std::vector<std::string>{(folder_ / "base.safetensors").string() + ": b"});
  const NameMap one = [](const std::string&) { return "same"; };
  expect_checkpoint_error([&] { OverlaySource({{low, one}}); }, {"are both 'same'"});
}

TEST(NameMaps, ClipAndOpenClip) {
  EXPECT_EQ(map_clip_name("vision_model.pre_layrnorm.weight"),
            "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight");
  EXPECT_EQ(map_clip_name("text_model.embeddings.position_ids"), std::nullopt);
  EXPECT_EQ(map_clip_name("visual_projection.weight"), std::nullopt);
  EXPECT_EQ(map_openclip_name("visual.trunk.stem.0.weight"),
            "model.vision_tower_aux.vision_stem.0.weight");
  EXPECT_EQ(map_openclip_name("state_dict.module.visual.trunk.stages.3.blocks.2.gamma"),
            "model.vision_tower_aux.vision_stages.3.blocks.2.gamma");
  for (const char* dropped :
       {"visual.trunk.norm_pre.weight", "visual.trunk.head.norm.weight", "visual.head.proj.weight",
        "logit_scale", "text.token_embedding.weight", "visual.trunk.stemming"}) {
    EXPECT_EQ(map_openclip_name(dropped), std::nullopt) << dropped;
  }
}

TEST(DtypeNames, RoundTrip) {
  for (const char* name : {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32",
                           "U16", "U8", "BOOL", "F8_E4M3", "F8_E5M2"}) {
    EXPECT_EQ(dtype_name(scalar_type(name)), name);
  }
  EXPECT_THROW(scalar_type("F4"), CheckpointError);
  EXPECT_THROW(dtype_name(at::kComplexFloat), CheckpointError);
}

}  // namespace
}  // namespace mgm
