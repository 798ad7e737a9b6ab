#include "checkpoint/hf_directory.h"

#include "base/json.h"
#include "checkpoint/tensor_source.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class HfDirectoryTest : public FilesTest {
 protected:
  // Five tensors of 12, 40, 12, 20 and 4 bytes.
  void SetUp() override {
    FilesTest::SetUp();
    const std::vector<std::pair<std::string, at::Tensor>> list = {
        {"b", numbered({3}, 1, at::kFloat)},
        {"a", numbered({2, 5}, 2, at::kFloat)},
        {"e", numbered({3, 2}, 3, at::kBFloat16)},
        {"c", numbered({5, 1}, 4, at::kFloat)},
        {"d", numbered({2}, 5, at::kHalf)}};
    for (const auto& [name, tensor] : list) {
      content_.tensors.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
      tensors_[name] = tensor;
    }
    content_.get = [this](const std::string& name) {
      asked_.push_back(name);
      return tensors_.at(name);
    };
    content_.files = {{"config.json", "{}\n"}, {"tokenizer.model", std::string("\0\1", 2)}};
  }
  void expect_whole(const fs::path& dir) {
    const SourcePtr source = open_model_dir(dir);
    ASSERT_EQ(source->names().size(), tensors_.size());
    for (const auto& [name, tensor] : tensors_) expect_same(source->read(name), tensor);
    for (const auto& [name, text] : content_.files) EXPECT_EQ(read_file(dir / name), text);
  }
  std::vector<std::string> listing(const fs::path& dir) {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(dir)) out.push_back(entry.path().filename());
    std::sort(out.begin(), out.end());
    return out;
  }

  HfDirectory content_;
  std::map<std::string, at::Tensor> tensors_;
  std::vector<std::string> asked_;
};

TEST_F(HfDirectoryTest, OneFileWithoutIndex) {
  const fs::path dir = folder_ / "deep" / "out";
  write_hf_directory(dir / "", content_);  // a trailing slash means the same folder
  EXPECT_EQ(listing(dir),
            (std::vector<std::string>{"config.json", "model.safetensors", "tokenizer.model"}));
  EXPECT_EQ(listing(folder_ / "deep"), std::vector<std::string>{"out"});
  expect_whole(dir);
  EXPECT_EQ(asked_.size(), tensors_.size());
}

TEST_F(HfDirectoryTest, ShardsWithIndex) {
  write_hf_directory(folder_ / "out", content_, {.max_shard_bytes = 32});
  expect_whole(folder_ / "out");
  EXPECT_EQ(
      listing(folder_ / "out"),
      (std::vector<std::string>{
          "config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
          "model-00003-of-00003.safetensors", "model.safetensors.index.json", "tokenizer.model"}));
  const Json index = read_json(folder_ / "out" / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], 88);
  EXPECT_EQ(index["metadata"]["total_parameters"], 26);
  EXPECT_EQ(index["weight_map"]["a"], "model-00001-of-00003.safetensors");
  // Shard by shard: what belongs to one file is asked for together.
  EXPECT_EQ(asked_, (std::vector<std::string>{"a", "b", "e", "c", "d"}));
}

TEST_F(HfDirectoryTest, RefusesToOverwrite) {
  const fs::path dir = folder_ / "out";
  make_dirs(dir);
  write_hf_directory(dir, content_);  // an empty folder is no loss
  expect_checkpoint_error([&] { write_hf_directory(dir, content_); }, {"not empty"});
  tensors_["b"] = numbered({3}, 9, at::kFloat);
  write_hf_directory(dir, content_, {.replace = true});
  expect_whole(dir);
  EXPECT_EQ(listing(folder_), std::vector<std::string>{"out"});
  make_dirs(dir / "photos");
  expect_checkpoint_error([&] { write_hf_directory(dir, content_, {.replace = true}); },
                          {"sub-folder ('photos')"});
  make_dirs(folder_ / "other");
  write_file_atomic(folder_ / "other" / "thesis.txt", "years of work");
  expect_checkpoint_error(
      [&] { write_hf_directory(folder_ / "other", content_, {.replace = true}); },
      {"no config.json"});
  EXPECT_EQ(read_file(folder_ / "other" / "thesis.txt"), "years of work");
  expect_checkpoint_error([&] { write_hf_directory(folder_ / "other" / "thesis.txt", content_); },
                          {"no folder"});
}

TEST_F(HfDirectoryTest, AFailureLeavesNothing) {
  content_.get = [this](const std::string& name) {
    if (name == "d") throw DataError("cannot gather");
    return tensors_.at(name);
  };
  EXPECT_THROW(write_hf_directory(folder_ / "out", content_, {.max_shard_bytes = 32}), DataError);
  EXPECT_TRUE(listing(folder_).empty());
  content_.tensors.push_back(content_.tensors[0]);
  EXPECT_THROW(write_hf_directory(folder_ / "out", content_), InternalError);
  EXPECT_TRUE(listing(folder_).empty());
  content_.tensors = {{"huge", at::kDouble, {int64_t{1} << 55}}};
  try {
    write_hf_directory(folder_ / "out", content_);
    ADD_FAILURE() << "2^58 bytes of free space?";
  } catch (const InternalError& e) {
    EXPECT_NE(std::string(e.what()).find("free some space"), std::string::npos) << e.what();
  }
}

TEST_F(HfDirectoryTest, ARefusedDirectoryTakesNoPlace) {
  HfDirectoryOptions options{.replace = true};
  options.check = [this](const fs::path& written) {
    expect_whole(written);
    throw DataError("no");
  };
  EXPECT_THROW(write_hf_directory(folder_ / "out", content_, options), DataError);
  EXPECT_TRUE(listing(folder_).empty());
  make_dirs(folder_ / "out");
  write_file_atomic(folder_ / "out" / "config.json", "of before");
  EXPECT_THROW(write_hf_directory(folder_ / "out", content_, options), DataError);
  EXPECT_EQ(listing(folder_), std::vector<std::string>{"out"});
  EXPECT_EQ(read_file(folder_ / "out" / "config.json"), "of before");
}

TEST_F(HfDirectoryTest, FoldersOfOthersStay) {
  for (const char* other : {"out.old", "out.tmp"}) {
    make_dirs(folder_ / other);
    write_file_atomic(folder_ / other / "thesis.txt", "years of work");
  }
  expect_checkpoint_error([&] { write_hf_directory(folder_ / "out/", content_); }, {"out.tmp"});
  fs::rename(folder_ / "out.tmp", folder_ / "mine");
  write_hf_directory(folder_ / "out", content_);  // replaces nothing, so needs no out.old
  expect_checkpoint_error([&] { write_hf_directory(folder_ / "out", content_, {.replace = true}); },
                          {"out.old: is in the way"});
  fs::remove_all(folder_ / "out");
  make_dirs(folder_ / "out");  // empty: replaced without being asked
  expect_checkpoint_error([&] { write_hf_directory(folder_ / "out", content_); }, {"out.old"});
  EXPECT_EQ(read_file(folder_ / "out.old" / "thesis.txt"), "years of work");
  EXPECT_THROW(write_hf_directory("", content_), ConfigError);
}

TEST_F(HfDirectoryTest, ReplacesWhatACrashLeft) {
  make_dirs(folder_ / "out.tmp");
  write_file_atomic(folder_ / "out.tmp" / "model.safetensors", "half");
  expect_checkpoint_error([&] { write_hf_directory(folder_ / "out", content_); },
                          {"out.tmp: is in the way"});  // not known to be of a write
  write_file_atomic(folder_ / "out.tmp" / ".mgm_unfinished", "");
  write_hf_directory(folder_ / "out", content_);
  expect_whole(folder_ / "out");
  EXPECT_EQ(listing(folder_), std::vector<std::string>{"out"});
}

TEST(PlanShards, Edges) {
  const auto plan = [](std::vector<int64_t> sizes, uint64_t limit) {
    std::vector<TensorSpec> tensors;
    for (const int64_t size : sizes) tensors.push_back({"t", at::kByte, {size}});
    return plan_shards(tensors, limit);
  };
  using Shards = std::vector<std::vector<size_t>>;
  EXPECT_EQ(plan({}, 10), Shards{});
  EXPECT_EQ(plan({10}, 10), Shards{{0}});
  EXPECT_EQ(plan({11}, 10), Shards{{0}});
  EXPECT_EQ(plan({5, 5, 1}, 10), (Shards{{0, 1}, {2}}));
  EXPECT_EQ(plan({0, 0}, 10), (Shards{{0, 1}}));
  EXPECT_EQ(plan({3, 11, 3}, 10), (Shards{{1}, {0, 2}}));  // as huggingface_hub does
}

}  // namespace
}  // namespace mgm
