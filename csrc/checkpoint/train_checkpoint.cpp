#include "checkpoint/train_checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"

namespace mgm {
namespace {

constexpr int kVersion = 1;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kTensors = "rank_0.safetensors";
constexpr const char* kConfig = "config.yaml";
constexpr const char* kState = "state.json";

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

// "step_12" -> 12; anything else (step_12.tmp, step_012) -> -1.
int64_t step_of(const std::string& name) {
  constexpr size_t kPrefix = 5, kMostDigits = 18;  // 10^18 fits 64 bits
  if (name.rfind("step_", 0) != 0 || name.size() > kPrefix + kMostDigits) return -1;
  int64_t step = 0;
  for (const char c : name.substr(kPrefix)) {
    if (c < '0' || c > '9') return -1;
    step = step * 10 + (c - '0');
  }
  return name == cat("step_", step) ? step : -1;
}

void discard(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) log::warn(cat(path.string(), ": cannot remove: ", code.message()));
}

// Renamed first: a crash in the middle of the removal leaves no folder that looks published.
void remove_published(const fs::path& dir) {
  const fs::path doomed = dir.string() + ".tmp";
  std::error_code code;
  fs::rename(dir, doomed, code);
  discard(code ? dir : doomed);
}

// What a crash left: step_N.tmp is a part of a checkpoint. step_N.old is a whole one; without a
// step_N beside it the crash was between the two renames of publish(), and it goes back.
void clean_up(const fs::path& folder) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if ((extension == ".tmp" || extension == ".old") && step_of(entry.path().stem().string()) >= 0)
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) {
    const fs::path published = folder / path.stem();
    if (path.extension() == ".old" && !fs::exists(published)) {
      fs::rename(path, published);
    } else {
      discard(path);
    }
  }
}

// One rename. Where step_N exists already (the run went back to an older checkpoint) the two are
// exchanged in one step; file systems that cannot do that take two.
void publish(const fs::path& temporary, const fs::path& dir) {
  const fs::path old = dir.string() + ".old";
  if (!fs::exists(dir)) {
    fs::rename(temporary, dir);
  } else if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) !=
             0) {
    fs::rename(dir, old);
    std::error_code code;
    fs::rename(temporary, dir, code);
    if (code) {
      fs::rename(old, dir);
      throw InternalError(dir.string(), ": cannot rename a folder to it: ", code.message());
    }
  }
  fsync_dir(dir.parent_path());
  discard(temporary);
  discard(old);
}

void write_files(const fs::path& folder, const TrainCheckpoint& checkpoint) {
  OrderedJson manifest = {{"version", kVersion}, {"step", checkpoint.step}};
  // The hashes are of what was to be written, not of what the disk then held.
  const auto record = [&](const char* name, uint64_t size, uint64_t hash) {
    manifest["files"][name] = {{"size", size}, {"xxh3", hex64(hash)}};
  };
  const auto write_text = [&](const char* name, const std::string& text) {
    write_file_atomic(folder / name, text);
    record(name, text.size(), hash64(text));
  };
  const WrittenFile tensors = write_safetensors(folder / kTensors, checkpoint.tensors);
  record(kTensors, tensors.size, tensors.hash);
  write_text(kConfig, checkpoint.config_yaml);
  write_text(kState, checkpoint.state.dump(1));
  manifest["frozen"] = checkpoint.frozen;
  write_file_atomic(folder / kManifest, manifest.dump(1));
}

void prune(const fs::path& run_dir, int64_t written, int64_t keep) {
  std::vector<int64_t> steps = list_train_checkpoints(run_dir);
  while (!steps.empty() && steps.back() > written) {
    const fs::path dir = train_checkpoint_dir(run_dir, steps.back());
    log::warn(cat(dir.string(), ": removed: the run went back to an earlier step and is now at ",
                  written));
    remove_published(dir);
    steps.pop_back();
  }
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i)
    remove_published(train_checkpoint_dir(run_dir, steps[i]));
}

struct Manifest {
  int64_t step = 0;
  std::map<std::string, std::string> frozen;
};

void check_file(const fs::path& path, const Json& entry) {
  std::error_code missing;
  const auto size = fs::file_size(path, missing);
  if (missing) throw CheckpointError(path.string(), ": cannot be read: ", missing.message());
  const auto expected = entry.at("size").get<uint64_t>();
  if (size != expected) {
    throw CheckpointError(path.string(), ": ", size, " bytes, the manifest says ", expected,
                          ": truncated or altered");
  }
  if (hex64(hash_file(path)) != entry.at("xxh3").get<std::string>()) {
    throw CheckpointError(path.string(), ": its content differs from the manifest's hash: altered");
  }
}

// Throws CheckpointError naming the first file that is not as the manifest says.
Manifest verify(const fs::path& dir) {
  const fs::path path = dir / kManifest;
  std::error_code ignored;
  if (!fs::exists(path, ignored))
    throw CheckpointError(dir.string(), ": no manifest.json: not a checkpoint, or damaged");
  try {
    const Json manifest = read_json(path);
    const auto version = manifest.at("version").get<int64_t>();
    if (version != kVersion) {
      throw CheckpointError(path.string(), ": version ", version, ", this program reads ",
                            kVersion);
    }
    Manifest out;
    out.step = manifest.at("step").get<int64_t>();
    out.frozen = manifest.at("frozen").get<std::map<std::string, std::string>>();
    const int64_t named = step_of(dir.filename().string());
    if (named >= 0 && named != out.step) {
      throw CheckpointError(path.string(), ": of step ", out.step, ", but the folder is named ",
                            dir.filename().string(), ": altered or moved");
    }
    for (const char* name : {kTensors, kConfig, kState})
      check_file(dir / name, manifest.at("files").at(name));
    return out;
  } catch (const Json::exception& e) {
    throw CheckpointError(path.string(), ": malformed: ", e.what());
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
}

// Says which other checkpoint of the run could be used, and throws.
[[noreturn]] void refuse(const fs::path& dir, const CheckpointError& problem) {
  const fs::path run_dir = dir.parent_path().parent_path();
  const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    const fs::path other = train_checkpoint_dir(run_dir, *it);
    if (other == dir) continue;
    try {
      verify(other);
    } catch (const CheckpointError&) {
      continue;
    }
    throw CheckpointError(
        problem.what(), ". The checkpoint of step ", *it,
        " is whole: remove the damaged one to go on from there, or run with --resume ",
        other.string());
  }
  throw CheckpointError(
      problem.what(),
      ". No other checkpoint of this run is whole, and a run never starts over by "
      "itself: use another run.dir, or remove the damaged checkpoint");
}

}  // namespace

fs::path train_checkpoint_dir(const fs::path& run_dir, int64_t step) {
  return checkpoints_dir(run_dir) / cat("step_", step);
}

std::vector<int64_t> list_train_checkpoints(const fs::path& run_dir) {
  std::vector<int64_t> steps;
  const fs::path folder = checkpoints_dir(run_dir);
  if (!fs::exists(folder)) return steps;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0 && entry.is_directory()) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void write_train_checkpoint(const fs::path& run_dir, const TrainCheckpoint& checkpoint,
                            int64_t keep) {
  MGM_CHECK(keep >= 1 && checkpoint.step >= 0, "keep ", keep, ", step ", checkpoint.step);
  const fs::path dir = train_checkpoint_dir(run_dir, checkpoint.step);
  const fs::path temporary = dir.string() + ".tmp";
  try {
    make_dirs(checkpoints_dir(run_dir));
    fsync_dir(run_dir);
    clean_up(checkpoints_dir(run_dir));
    make_dirs(temporary);
    write_files(temporary, checkpoint);
    fsync_dir(temporary);
    publish(temporary, dir);
  } catch (const std::exception& e) {
    std::error_code ignored;  // the error that counts is on its way
    fs::remove_all(temporary, ignored);
    throw InternalError("cannot save the checkpoint of step ", checkpoint.step, ": ", e.what(),
                        ". Earlier checkpoints are untouched.");
  }
  prune(run_dir, checkpoint.step, keep);
}

TrainCheckpoint read_train_checkpoint(const fs::path& path) {
  fs::path dir = fs::absolute(path).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();  // "step_5/" is step_5
  TrainCheckpoint out;
  try {
    Manifest manifest = verify(dir);
    out.step = manifest.step;
    out.frozen = std::move(manifest.frozen);
  } catch (const CheckpointError& e) {
    refuse(dir, e);
  }
  out.config_yaml = read_file(dir / kConfig);
  out.state = read_json(dir / kState);
  const SourcePtr source = open_safetensors(dir / kTensors);
  for (const std::string& name : source->names()) out.tensors[name] = source->read(name);
  return out;
}

}  // namespace mgm
