#include "checkpoint/train_checkpoint.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "base/hash.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class TrainCheckpointTest : public FilesTest {
 protected:
  fs::path checkpoints() const { return folder_ / "checkpoints"; }
  fs::path dir(int64_t step) const { return train_checkpoint_dir(folder_, step); }
  void write(int64_t step, int64_t keep = 100) {
    write_train_checkpoint(folder_, sample(step), keep);
  }

  static TrainCheckpoint sample(int64_t step) {
    TrainCheckpoint c;
    c.step = step;
    c.config_yaml = cat("run: {dir: ä}\n# step ", step, "\n");
    c.state = {{"step", step}, {"metrics_offset", 12345678901}, {"device", "cpu"}};
    c.frozen = {{"model.embed", "00ff"}, {"model.layers.0", hex64(static_cast<uint64_t>(step))}};
    at::Tensor odd = numbered({13, 7}, step, at::kFloat);
    odd[0][0] = -0.0f;
    odd[0][1] = 1e-45f;  // the smallest number above zero
    odd[0][2] = -INFINITY;
    odd[0][3] = std::nanf("77");
    c.tensors = {{"master.a", odd},
                 {"exp_avg.a", numbered({13, 7}, 2, at::kFloat)},
                 {"exp_avg_sq.a", at::zeros({})},
                 {"master.none", at::empty({0, 3})}};
    return c;
  }
  static void expect_equal(const TrainCheckpoint& a, const TrainCheckpoint& b) {
    EXPECT_EQ(a.step, b.step);
    EXPECT_EQ(a.config_yaml, b.config_yaml);
    EXPECT_EQ(a.state, b.state);
    EXPECT_EQ(a.frozen, b.frozen);
    ASSERT_EQ(a.tensors.size(), b.tensors.size());
    for (const auto& [name, tensor] : a.tensors) {
      const at::Tensor& other = b.tensors.at(name);
      EXPECT_EQ(tensor.sizes(), other.sizes());
      ASSERT_EQ(tensor.nbytes(), other.nbytes());
      if (tensor.nbytes() == 0) continue;
      EXPECT_EQ(std::memcmp(tensor.const_data_ptr(), other.const_data_ptr(), tensor.nbytes()), 0);
    }
  }
  void expect_whole(int64_t step) { expect_equal(read_train_checkpoint(dir(step)), sample(step)); }
  std::vector<std::string> listing() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(checkpoints()))
      out.push_back(entry.path().filename());
    std::sort(out.begin(), out.end());
    return out;
  }
  void change_manifest(int64_t step, const std::function<void(Json&)>& change) {
    Json manifest = read_json(dir(step) / "manifest.json");
    change(manifest);
    write_file_atomic(dir(step) / "manifest.json", manifest.dump());
  }
};

using Names = std::vector<std::string>;

TEST_F(TrainCheckpointTest, ReadsBackToTheBit) {
  EXPECT_TRUE(list_train_checkpoints(folder_).empty());
  write(7);
  expect_whole(7);
  expect_equal(read_train_checkpoint(dir(7) / ""), sample(7));
  EXPECT_EQ(listing(), Names{"step_7"});
  TrainCheckpoint empty;  // nothing trains
  empty.state = Json::object();
  write_train_checkpoint(folder_ / "deep" / "run", empty, 1);
  expect_equal(read_train_checkpoint(train_checkpoint_dir(folder_ / "deep" / "run", 0)), empty);
}

TEST_F(TrainCheckpointTest, KeepsTheNewest) {
  for (const int64_t step : {5, 9, 10, 100}) write(step, 3);
  EXPECT_EQ(list_train_checkpoints(folder_), (std::vector<int64_t>{9, 10, 100}));
  write(101, 1);
  EXPECT_EQ(listing(), Names{"step_101"});
  expect_whole(101);
  EXPECT_THROW(write(102, 0), InternalError);
  EXPECT_EQ(listing(), Names{"step_101"});
}

// After --resume step_10 the checkpoints of steps 20 and 30 belong to no run any more; what was
// just written must neither be pruned before them nor be passed over by the next resume.
TEST_F(TrainCheckpointTest, GoingBackDropsTheFutureThatWasLeft) {
  for (const int64_t step : {10, 20, 30}) write(step, 3);
  write(15, 2);
  EXPECT_EQ(listing(), (Names{"step_10", "step_15"}));
  expect_whole(15);
}

TEST_F(TrainCheckpointTest, ReplacesTheSameStep) {
  write(4);
  TrainCheckpoint other = sample(4);
  other.tensors["master.a"] = numbered({13, 7}, 99, at::kFloat);
  write_train_checkpoint(folder_, other, 1);
  expect_equal(read_train_checkpoint(dir(4)), other);
  EXPECT_EQ(listing(), Names{"step_4"});
}

TEST_F(TrainCheckpointTest, CleansUpAfterACrash) {
  write(1);
  make_dirs(dir(2).string() + ".tmp");
  write_file_atomic(dir(2).string() + ".tmp/rank_0.safetensors", "half");
  make_dirs(dir(3).string() + ".tmp");
  fs::rename(dir(1), dir(1).string() + ".old");  // between the two renames of a replacement
  make_dirs(checkpoints() / "notes.old");        // not ours
  make_dirs(checkpoints() / "step_07");
  make_dirs(checkpoints() / "step_");
  make_dirs(checkpoints() / "step_99999999999999999999999");
  write_file_atomic(checkpoints() / "step_8", "a file");
  EXPECT_TRUE(list_train_checkpoints(folder_).empty());
  write(2);
  EXPECT_EQ(listing(), (Names{"notes.old", "step_", "step_07", "step_1", "step_2", "step_8",
                              "step_99999999999999999999999"}));
  EXPECT_EQ(list_train_checkpoints(folder_), (std::vector<int64_t>{1, 2}));
  expect_whole(1);
  expect_whole(2);
}

TEST_F(TrainCheckpointTest, NamesTheDamagedFileAndOffersAWholeOne) {
  const char* const kNames[] = {"rank_0.safetensors", "config.yaml", "state.json"};
  const std::string offer =
      "The checkpoint of step 2 is whole: remove the damaged one to go on "
      "from there, or run with --resume ";
  write(1);
  write(2);
  for (const std::string name : kNames) {
    write(3);
    const fs::path path = dir(3) / name;
    const std::string whole = read_file(path);
    const auto refused = [&](const std::string& why) {
      expect_checkpoint_error([&] { read_train_checkpoint(dir(3)); },
                              {path.string(), why, offer + dir(2).string()});
    };
    write_file_atomic(path, whole.substr(0, whole.size() - 1));
    refused(cat(whole.size() - 1, " bytes, the manifest says ", whole.size(),
                ": truncated or altered"));
    write_file_atomic(path, "");
    refused("0 bytes, the manifest says");
    std::string altered = whole;
    altered[whole.size() / 2] = static_cast<char>(altered[whole.size() / 2] ^ 1);
    write_file_atomic(path, altered);
    refused("its content differs from the manifest's hash: altered");
    fs::remove(path);
    refused("cannot be read: No such file or directory");
    make_dirs(path);
    refused("cannot be read");
    fs::remove_all(path);
  }
  // The next one is damaged too, and the last.
  fs::remove(dir(2) / "state.json");
  expect_checkpoint_error([&] { read_train_checkpoint(dir(3)); }, {"step 1 is whole"});
  fs::remove(dir(1) / "manifest.json");
  expect_checkpoint_error([&] { read_train_checkpoint(dir(3)); },
                          {dir(3).string(), "No other checkpoint of this run is whole"});
  expect_checkpoint_error([&] { read_train_checkpoint(dir(1)); },
                          {dir(1).string() + ": no manifest.json"});
  expect_checkpoint_error([&] { read_train_checkpoint(folder_ / "no" / "such"); },
                          {"such: no manifest.json"});
}

TEST_F(TrainCheckpointTest, RefusesOtherManifests) {
  const auto refused = [&](const std::string& why) {
    expect_checkpoint_error([&] { read_train_checkpoint(dir(5)); },
                            {(dir(5) / "manifest.json").string(), why});
  };
  write(5);
  const std::string whole = read_file(dir(5) / "manifest.json");
  for (const std::string text : {"", "{", "\xff\xfe", "{}", "[]", "null", "3", "\"version\""}) {
    write_file_atomic(dir(5) / "manifest.json", text);
    refused("");
  }
  write_file_atomic(dir(5) / "manifest.json", whole.substr(0, whole.size() / 2));
  refused("not valid JSON");
  const auto changed = [&](const std::function<void(Json&)>& change, const std::string& why) {
    write_file_atomic(dir(5) / "manifest.json", whole);
    change_manifest(5, change);
    refused(why);
  };
  changed([](Json& m) { m["version"] = 2; }, "version 2, this program reads 1");
  changed([](Json& m) { m["version"] = "1"; }, "malformed");
  changed([](Json& m) { m["step"] = 6; }, "of step 6, but the folder is named step_5");
  changed([](Json& m) { m["step"] = "5"; }, "malformed");
  changed([](Json& m) { m["frozen"] = {{"g", 1}}; }, "malformed");
  changed([](Json& m) { m.erase("frozen"); }, "malformed");
  changed([](Json& m) { m["files"] = Json::object(); }, "malformed");
  changed([](Json& m) { m["files"].erase("state.json"); }, "'state.json' not found");
  changed([](Json& m) { m["files"]["state.json"]["size"] = "many"; }, "malformed");
  write_file_atomic(dir(5) / "manifest.json", whole);
  expect_whole(5);
}

void expect_write_fails(const std::function<void()>& write,
                        std::initializer_list<std::string> parts) {
  try {
    write();
    ADD_FAILURE() << "the checkpoint was written";
  } catch (const InternalError& e) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << part << "\n" << e.what();
  }
}

// A limit on file sizes stands for a full disk: write() fails in the middle of a file.
TEST_F(TrainCheckpointTest, FullDiskLeavesEarlierCheckpointsWhole) {
  write(1);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  // In the tensors, in config.yaml, in the manifest.
  const uint64_t tensors = fs::file_size(dir(1) / "rank_0.safetensors");
  const uint64_t manifest = fs::file_size(dir(1) / "manifest.json");
  ASSERT_GT(tensors, manifest + 1);
  TrainCheckpoint small = sample(2);
  small.tensors.clear();  // a file of 40 bytes
  small.config_yaml = std::string(100, '#');
  for (const auto& [limit, checkpoint, file] :
       {std::tuple(uint64_t{0}, sample(2), "rank_0.safetensors"),
        std::tuple(tensors - 1, sample(2), "rank_0.safetensors"),
        std::tuple(uint64_t{60}, small, "config.yaml"),
        std::tuple(manifest - 20, small, "manifest.json")}) {
    rlimit limited = before;
    limited.rlim_cur = limit;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
    const TrainCheckpoint& c = checkpoint;
    expect_write_fails([&] { write_train_checkpoint(folder_, c, 1); },
                       {"cannot save the checkpoint of step 2", dir(2).string() + ".tmp/" + file,
                        "File too large", "Earlier checkpoints are untouched"});
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(listing(), Names{"step_1"});
    expect_whole(1);
  }
  std::signal(SIGXFSZ, ignored);
  write(2, 1);
  EXPECT_EQ(listing(), Names{"step_2"});
}

// Root may write anywhere, so it acts as nobody meanwhile.
class AsNobody {
 public:
  AsNobody() {
    if (::geteuid() == 0) changed_ = ::seteuid(65534) == 0;
  }
  ~AsNobody() {
    if (changed_) {
      EXPECT_EQ(::seteuid(0), 0);
    }
  }

 private:
  bool changed_ = false;
};

TEST_F(TrainCheckpointTest, FolderThatCannotBeWritten) {
  write(1);
  ASSERT_EQ(::chmod(checkpoints().c_str(), 0555), 0);
  make_dirs(folder_ / "bare");
  ASSERT_EQ(::chmod((folder_ / "bare").c_str(), 0555), 0);
  {
    const AsNobody nobody;
    expect_write_fails([&] { write(2, 1); },
                       {dir(2).string() + ".tmp", "Permission denied", "step 2"});
    expect_write_fails([&] { write_train_checkpoint(folder_ / "bare", sample(2), 1); },
                       {(folder_ / "bare" / "checkpoints").string(), "Permission denied"});
    EXPECT_EQ(listing(), Names{"step_1"});
    expect_whole(1);
  }
  ::chmod(checkpoints().c_str(), 0755);
  write_file_atomic(folder_ / "file", "");
  expect_write_fails([&] { write_train_checkpoint(folder_ / "file", sample(2), 1); },
                     {(folder_ / "file").string()});
}

// The tensors are views of the file; a run that prunes the folder meanwhile does not take them.
TEST_F(TrainCheckpointTest, TensorsOutliveTheFolder) {
  write(1);
  const TrainCheckpoint read = read_train_checkpoint(dir(1));
  write(2, 1);
  EXPECT_FALSE(fs::exists(dir(1)));
  expect_equal(read, sample(1));
}

}  // namespace
}  // namespace mgm
