#include "checkpoint/gguf_source.h"

#include "checkpoint/tensor_source.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"
#include "unit/formats/gguf_builder.h"

namespace mgm {
namespace {

constexpr uint32_t kF32 = 0, kQ8_0 = 8, kQ2_K = 10;

using GgufSourceTest = FilesTest;

std::string floats(int64_t count, float first = 0) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += GgufBuilder::raw(first + static_cast<float>(i));
  return out;
}

GgufBuilder model(const std::string& architecture) {
  GgufBuilder out;
  out.meta("general.architecture", architecture);
  out.meta(architecture + ".attention.head_count", 2u);
  out.meta(architecture + ".attention.head_count_kv", 1u);
  return out;
}

SourcePtr open(const fs::path& path, const GgufBuilder& builder) {
  write_file_atomic(path, builder.build());
  return open_model_dir(path);
}

TEST_F(GgufSourceTest, RowsOfHeadsBecomeHalves) {
  const auto source =
      open(folder_ / "a.gguf", model("llama")
                                   .tensor("blk.0.attn_q.weight", {1, 8}, kF32, floats(8))
                                   .tensor("blk.0.attn_k.weight", {1, 8}, kF32, floats(8))
                                   .tensor("blk.0.attn_v.weight", {1, 8}, kF32, floats(8)));
  const auto column = [](std::vector<float> values) { return at::tensor(values).view({-1, 1}); };
  expect_same(source->read("model.layers.0.self_attn.q_proj.weight"),
              column({0, 2, 1, 3, 4, 6, 5, 7}));
  expect_same(source->read("model.layers.0.self_attn.k_proj.weight"),
              column({0, 2, 4, 6, 1, 3, 5, 7}));
  expect_same(source->read("model.layers.0.self_attn.v_proj.weight"),
              column({0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST_F(GgufSourceTest, NormsOfGemmaLoseTheirOne) {
  for (const char* architecture : {"gemma", "llama"}) {
    SCOPED_TRACE(architecture);
    const auto source =
        open(folder_ / "a.gguf", model(architecture)
                                     .tensor("output_norm.weight", {3}, kF32, floats(3, 1))
                                     .tensor("blk.7.attn_norm.weight", {3}, kF32, floats(3, 1)));
    const float one = std::string(architecture) == "gemma" ? 1 : 0;
    for (const char* name : {"model.norm.weight", "model.layers.7.input_layernorm.weight"}) {
      expect_same(source->read(name), at::tensor(std::vector<float>{1, 2, 3}) - one);
    }
  }
}

TEST_F(GgufSourceTest, StackedAndSingleExperts) {
  const auto source =
      open(folder_ / "a.gguf", model("llama")
                                   .tensor("blk.0.ffn_up_exps.weight", {2, 3, 2}, kF32, floats(12))
                                   .tensor("blk.1.ffn_down.1.weight", {2, 3}, kF32, floats(6)));
  EXPECT_EQ(source->names(),
            (std::vector<std::string>{"model.layers.0.block_sparse_moe.experts.0.w3.weight",
                                      "model.layers.0.block_sparse_moe.experts.1.w3.weight",
                                      "model.layers.1.block_sparse_moe.experts.1.w2.weight"}));
  expect_same(source->read(source->names()[1]), at::arange(6, 12, at::kFloat).view({3, 2}));
}

TEST_F(GgufSourceTest, QuantisedTensorsAreFloatsAndSayWhatTheyWere) {
  std::string block("\0\x3c", 2);  // scale 1
  for (int i = 0; i < 32; ++i) block += static_cast<char>(i);
  const auto source =
      open(folder_ / "a.gguf", model("llama").tensor("output.weight", {32, 1}, kQ8_0, block));
  const TensorInfo& info = source->info("lm_head.weight");
  EXPECT_EQ(info.type, at::kFloat);
  EXPECT_EQ(info.dtype, "Q8_0");
  EXPECT_EQ(info.bytes, 128u);
  expect_same(source->read("lm_head.weight"), at::arange(32, at::kFloat).view({1, 32}));
  float middle = 0;
  source->read_range("lm_head.weight", 20, 4, &middle);
  EXPECT_EQ(middle, 5);
}

TEST_F(GgufSourceTest, PackedAreTheBytesOfTheFile) {
  std::string block("\0\x3c", 2);
  for (int i = 0; i < 32; ++i) block += static_cast<char>(i);
  open(folder_ / "a.gguf", model("llama")
                               .tensor("output.weight", {32, 1}, kQ8_0, block)
                               .tensor("output_norm.weight", {3}, kF32, floats(3))
                               .tensor("token_embd.weight", {0}, kF32, ""));
  const auto packed = open_gguf_packed(folder_ / "a.gguf");
  EXPECT_EQ(packed->names(),
            (std::vector<std::string>{"output.weight", "output_norm.weight", "token_embd.weight"}));
  const auto bytes_of = [&](const std::string& name) {
    const at::Tensor bytes = packed->read(name);
    EXPECT_EQ(bytes.scalar_type(), at::kByte);
    EXPECT_EQ(packed->info(name).bytes, bytes.nbytes());
    return std::string(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes());
  };
  EXPECT_EQ(bytes_of("output.weight"), block);
  EXPECT_EQ(bytes_of("output_norm.weight"), floats(3));
  EXPECT_EQ(bytes_of("token_embd.weight"), "");
  EXPECT_EQ(packed->info("output.weight").dtype, "Q8_0");
  EXPECT_EQ(packed->info("output.weight").shape, (std::vector<int64_t>{1, 32}));
  expect_checkpoint_error([&] { packed->read("lm_head.weight"); }, {"a.gguf", "lm_head.weight"});
}

TEST_F(GgufSourceTest, RefusesWhatHasNoPlace) {
  const fs::path file = folder_ / "a.gguf";
  const auto refuse = [&](const GgufBuilder& builder, std::initializer_list<std::string> parts) {
    expect_checkpoint_error([&] { open(file, builder); }, parts);
  };
  refuse(model("llama")
             .tensor("blk.0.strange.weight", {1}, kF32, floats(1))
             .tensor("blk.x.attn_q.weight", {1}, kF32, floats(1)),
         {file.string(), "2 tensors", "blk.0.strange.weight", "blk.x.attn_q.weight"});
  refuse(model("mamba"), {"'mamba'", "llama, gemma"});
  refuse(GgufBuilder().meta("a", 1u), {"general.architecture"});
  refuse(model("llama").tensor("output.weight", {256, 1}, kQ2_K, std::string(84, 'x')),
         {"output.weight (Q2_K)"});
  refuse(model("llama").meta("split.count", 2, GgufBuilder::raw<uint16_t>(3)), {"split", "merge"});
  refuse(model("llama").tensor("blk.0.ffn_up_exps.weight", {2}, kF32, floats(2)),
         {"1 dimensions, stacked experts have 3"});
  const auto odd =
      open(file, model("llama").tensor("blk.0.attn_q.weight", {1, 6}, kF32, floats(6)));
  expect_checkpoint_error([&] { odd->read("model.layers.0.self_attn.q_proj.weight"); },
                          {"attn_q", "6 rows for 2 heads"});
}

TEST_F(GgufSourceTest, FoldersWithOneFile) {
  open(folder_ / "a.gguf", model("llama").tensor("output.weight", {2}, kF32, floats(2)));
  EXPECT_EQ(open_model_dir(folder_)->names(), std::vector<std::string>{"lm_head.weight"});
  fs::copy_file(folder_ / "a.gguf", folder_ / "b.gguf");
  expect_checkpoint_error([&] { open_model_dir(folder_); }, {"2 GGUF files", "a.gguf"});
}

}  // namespace
}  // namespace mgm
