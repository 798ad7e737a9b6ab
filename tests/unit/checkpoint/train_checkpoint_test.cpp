#include "checkpoint/train_checkpoint.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "base/hash.h"
#include "small_state.h"
#include "unit/checkpoint/files.h"
#include "unit/formats/expect_error.h"

namespace mgm {
namespace {

class TrainCheckpointTest : public FilesTest {
 protected:
  fs::path checkpoints() const { return folder_ / "checkpoints"; }
  fs::path dir(int64_t step) const { return train_checkpoint_dir(folder_, step); }
  // A checkpoint whose state is that of `seed`, by default of its step.
  void write(int64_t step, int64_t keep = 100, int64_t seed = 0) {
    SmallState state;
    state.fill(seed == 0 ? step : seed);
    save_small(folder_, state, ranks_, step, keep);
  }
  TrainCheckpoint read(int64_t step) { return open_train_checkpoint(dir(step), ranks_); }

  static void expect_state(const TrainCheckpoint& checkpoint, int64_t seed) {
    SmallState state;
    restore_train_state(checkpoint, *state.store, state.states);
    state.expect_filled(seed, checkpoint.dir().string());
  }
  static void expect_content(const TrainCheckpoint& checkpoint, int64_t step) {
    const CheckpointContent expected = small_content(step);
    EXPECT_EQ(checkpoint.step(), step);
    EXPECT_EQ(checkpoint.config_yaml(), expected.config_yaml);
    EXPECT_EQ(checkpoint.state(), expected.state);
    EXPECT_EQ(checkpoint.manifest().frozen, expected.frozen);
  }
  void expect_whole(int64_t step) {
    const TrainCheckpoint checkpoint = read(step);
    expect_content(checkpoint, step);
    expect_state(checkpoint, step);
  }
  std::vector<std::string> listing() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(checkpoints()))
      out.push_back(entry.path().filename());
    std::sort(out.begin(), out.end());
    return out;
  }
  // `sign`: as somebody would who knows how the manifest's own hash is made.
  void change_manifest(int64_t step, const std::function<void(Json&)>& change, bool sign) {
    Json manifest = read_json(dir(step) / "manifest.json");
    change(manifest);
    if (sign) {
      manifest.erase("xxh3");
      manifest["xxh3"] = hex64(hash64(manifest.dump()));
    }
    write_file_atomic(dir(step) / "manifest.json", manifest.dump());
  }

  Ranks ranks_ = local_ranks({});
};

using Names = std::vector<std::string>;

TEST_F(TrainCheckpointTest, ReadsBackToTheBit) {
  EXPECT_TRUE(list_train_checkpoints(folder_).empty());
  write(7);
  expect_whole(7);
  expect_content(open_train_checkpoint(dir(7) / "", ranks_), 7);
  EXPECT_EQ(find_train_checkpoint(folder_), dir(7));
  EXPECT_EQ(find_train_checkpoint(dir(7)), dir(7));
  EXPECT_EQ(listing(), Names{"step_7"});
}

TEST_F(TrainCheckpointTest, NothingTrains) {
  const fs::path run_dir = folder_ / "deep" / "run";
  const std::atomic<bool> never{false};
  SaveChannel channel(nullptr, "", 0, 1, 60, never);
  const std::vector<ShardTensor> nothing;
  write_train_checkpoint(
      run_dir, {}, StateLayout{"replicate", 1, 1, {}},
      [&]() -> const std::vector<ShardTensor>& { return nothing; }, 1, channel);
  const TrainCheckpoint read = open_train_checkpoint(train_checkpoint_dir(run_dir, 0), ranks_);
  EXPECT_EQ(read.step(), 0);
  EXPECT_EQ(read.state(), Json::object());
  EXPECT_TRUE(read.layout().groups.empty());
}

TEST_F(TrainCheckpointTest, ReadsRangesOfParameters) {
  write(7);
  const TrainCheckpoint checkpoint = read(7);
  const SmallState state;
  for (const auto& param : state.params) {
    if (!checkpoint.contains(param->spec.name)) continue;
    const at::Tensor whole = small_values("exp_avg", param->spec, 7).view(-1);
    const int64_t n = whole.numel();
    for (const auto& [first, count] : {std::pair<int64_t, int64_t>(0, n), {n / 3, n / 2}, {n, 0}}) {
      at::Tensor got = at::zeros({count});
      int64_t seen = 0;
      checkpoint.read("exp_avg", param->spec.name, first, count,
                      [&, begin = first](int64_t at, const at::Tensor& values) {
                        got.narrow(0, at - begin, values.numel()).copy_(values);
                        seen += values.numel();
                      });
      EXPECT_EQ(seen, count);
      const at::Tensor want = whole.narrow(0, first, count).contiguous();
      EXPECT_TRUE(count == 0 ||
                  std::memcmp(got.const_data_ptr(), want.const_data_ptr(), want.nbytes()) == 0)
          << param->spec.name;
    }
    EXPECT_THROW(checkpoint.read("exp_avg", param->spec.name, 1, n, {}), InternalError);
  }
  expect_checkpoint_error([&] { checkpoint.read("master", "no.such", 0, 1, {}); }, {"no.such"});
  expect_checkpoint_error([&] { checkpoint.read("mistress", "head.weight", 0, 1, {}); },
                          {"rank_0.safetensors", "mistress.head"});
}

// A run whose rules or sizes changed is told everything that differs at once.
TEST_F(TrainCheckpointTest, OtherParametersAreAllNamed) {
  write(3);
  const TrainCheckpoint checkpoint = read(3);
  SmallState state;
  state.params[0]->spec.shape = {41, 97};
  state.params[3]->spec.name = "head.gewicht";
  expect_checkpoint_error(
      [&] { restore_train_state(checkpoint, *state.store, state.states); },
      {dir(3).string(), "3 trained parameters differ", "blocks.0.weight: of another shape",
       "head.gewicht: trains, but is not in it", "head.weight: in it, but does not train"});
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
  write(4, 1, /*seed=*/99);
  expect_state(read(4), 99);
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
      expect_checkpoint_error([&] { read(3); }, {path.string(), why, offer + dir(2).string()});
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
  expect_checkpoint_error([&] { read(3); }, {"step 1 is whole"});
  fs::remove(dir(1) / "manifest.json");
  expect_checkpoint_error([&] { read(3); },
                          {dir(3).string(), "No other checkpoint of this run is whole"});
  expect_checkpoint_error([&] { read(1); }, {dir(1).string() + ": no manifest.json"});
  expect_checkpoint_error([&] { open_train_checkpoint(folder_ / "no" / "such", ranks_); },
                          {"such: no manifest.json"});
}

TEST_F(TrainCheckpointTest, RefusesOtherManifests) {
  const auto refused = [&](const std::string& why) {
    expect_checkpoint_error([&] { read(5); }, {(dir(5) / "manifest.json").string(), why});
  };
  write(5);
  const std::string whole = read_file(dir(5) / "manifest.json");
  for (const std::string text : {"", "{", "\xff\xfe", "{}", "[]", "null", "3", "\"version\""}) {
    write_file_atomic(dir(5) / "manifest.json", text);
    refused("");
  }
  write_file_atomic(dir(5) / "manifest.json", whole.substr(0, whole.size() / 2));
  refused("not valid JSON");
  const auto changed = [&](const std::function<void(Json&)>& change, const std::string& why,
                           bool sign = true) {
    write_file_atomic(dir(5) / "manifest.json", whole);
    change_manifest(5, change, sign);
    refused(why);
  };
  changed([](Json& m) { m["version"] = 1; }, "version 1, this program reads 2");
  changed([](Json& m) { m["version"] = "2"; }, "malformed");
  changed([](Json& m) { m["step"] = 6; }, "of step 6, but the folder is named step_5");
  changed([](Json& m) { m["step"] = "5"; }, "malformed");
  changed([](Json& m) { m["world"] = 2; }, "no entry for rank_1.safetensors");
  changed([](Json& m) { m["world"] = 0; }, "malformed: 0 ranks");
  changed([](Json& m) { m["frozen"] = {{"g", 1}}; }, "malformed");
  changed([](Json& m) { m.erase("frozen"); }, "malformed");
  changed([](Json& m) { m["files"] = Json::object(); }, "malformed");
  changed([](Json& m) { m["files"].erase("state.json"); }, "no entry for state.json");
  changed([](Json& m) { m["files"]["../x"] = m["files"]["state.json"]; }, "file name '../x'");
  changed([](Json& m) { m["files"]["state.json"]["size"] = "many"; }, "malformed");
  // Without the signature every change is seen, whatever it is.
  for (const char* key : {"step", "time", "mode", "world", "frozen", "files"}) {
    changed([key](Json& m) { m[key] = "other"; }, "its content differs from its own hash", false);
  }
  changed([](Json& m) { m.erase("xxh3"); }, "malformed", false);
  write_file_atomic(dir(5) / "manifest.json", whole);
  expect_whole(5);
}

// The manifest's word for it, but the shards are not what the layout says.
TEST_F(TrainCheckpointTest, RefusesLayoutsThatContradictThemselves) {
  write(5);
  const std::string whole = read_file(dir(5) / "state.json");
  const auto refused = [&](const std::function<void(Json&)>& change, const std::string& why) {
    Json state = Json::parse(whole);
    change(state["layout"]);
    const std::string text = state.dump();
    write_file_atomic(dir(5) / "state.json", text);
    change_manifest(
        5,
        [&](Json& m) {
          m["files"]["state.json"] = {{"size", text.size()}, {"xxh3", hex64(hash64(text))}};
        },
        true);
    expect_checkpoint_error([&] { expect_state(read(5), 5); }, {dir(5).string(), why});
  };
  refused([](Json& l) { l["world"] = 2; }, "1 ranges for 2 ranks");
  refused([](Json& l) { l["world"] = 0; }, "0 ranks");
  refused([](Json& l) { l["groups"][0]["ranges"][0][0] = 256; }, "overlap or leave a hole");
  refused([](Json& l) { l["groups"][0]["ranges"][0][1] = 256; }, "hold 256 of");
  refused([](Json& l) { l["groups"][0]["segments"][1]["offset"] = 5; }, "overlaps another");
  refused([](Json& l) { l["groups"][0]["segments"][1]["offset"] = -5; }, "impossible");
  refused([](Json& l) { l["groups"][0]["segments"][1]["shape"] = {1 << 30}; }, "leaves the buffer");
  refused([](Json& l) { l["groups"][0]["segments"][1]["name"] = "blocks.0.weight"; }, "twice");
  refused([](Json& l) { l["groups"][1] = l["groups"][0]; }, "twice");
  refused([](Json& l) { l.erase("groups"); }, "malformed");
  refused(
      [](Json& l) {  // consistent in itself, but not with the shard
        l["groups"][0]["numel"] = l["groups"][0]["numel"].get<int64_t>() + 256;
        l["groups"][0]["ranges"][0][1] = l["groups"][0]["numel"];
      },
      "the layout says");
}

TEST_F(TrainCheckpointTest, NamesAShardOfAnotherSave) {
  write(3);
  write(5);
  fs::copy_file(dir(3) / "rank_0.safetensors", dir(5) / "rank_0.safetensors",
                fs::copy_options::overwrite_existing);
  expect_checkpoint_error(
      [&] { read(5); },
      {(dir(5) / "rank_0.safetensors").string(), "is the shard of rank 0 of 1 of step 3",
       "of step 5", "two saves are mixed", "The checkpoint of step 3 is whole"});
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
  const std::atomic<bool> never{false};
  const std::vector<ShardTensor> nothing;  // a file of 100 bytes
  const auto write_small = [&] {
    SaveChannel channel(nullptr, "", 0, 1, 60, never);
    CheckpointContent content;
    content.step = 2;
    content.config_yaml = std::string(250, '#');
    write_train_checkpoint(
        folder_, content, StateLayout{"replicate", 1, 1, {}},
        [&]() -> const std::vector<ShardTensor>& { return nothing; }, 1, channel);
  };
  const auto write_whole = [&] { write(2, 1); };
  for (const auto& [limit, save, file] :
       {std::tuple(uint64_t{0}, std::function<void()>(write_whole), "rank_0.safetensors"),
        std::tuple(tensors - 1, std::function<void()>(write_whole), "rank_0.safetensors"),
        std::tuple(uint64_t{200}, std::function<void()>(write_small), "config.yaml"),
        std::tuple(uint64_t{300}, std::function<void()>(write_small), "manifest.json")}) {
    rlimit limited = before;
    limited.rlim_cur = limit;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limited), 0);
    expect_write_fails(save,
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
    SmallState state;
    expect_write_fails([&] { save_small(folder_ / "bare", state, ranks_, 2); },
                       {(folder_ / "bare" / "checkpoints").string(), "Permission denied"});
    EXPECT_EQ(listing(), Names{"step_1"});
    expect_whole(1);
  }
  ::chmod(checkpoints().c_str(), 0755);
  write_file_atomic(folder_ / "file", "");
  SmallState state;
  expect_write_fails([&] { save_small(folder_ / "file", state, ranks_, 2); },
                     {(folder_ / "file").string()});
}

// What is read are views of the file; a run that prunes the folder meanwhile does not take them.
TEST_F(TrainCheckpointTest, TensorsOutliveTheFolder) {
  write(1);
  const TrainCheckpoint checkpoint = read(1);
  expect_state(checkpoint, 1);
  write(2, 1);
  EXPECT_FALSE(fs::exists(dir(1)));
  expect_state(checkpoint, 1);
}

}  // namespace
}  // namespace mgm
