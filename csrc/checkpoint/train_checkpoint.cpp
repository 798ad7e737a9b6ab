#include "checkpoint/train_checkpoint.h"

#include <algorithm>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/tensor_writer.h"

namespace mgm {
namespace {

constexpr int kVersion = 1;
constexpr const char* kTensorFile = "rank_0.safetensors";
const char* const kFiles[] = {kTensorFile, "config.yaml", "state.json"};

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

// "step_12" -> 12; anything else (a .tmp folder) -> -1.
int64_t step_of(const std::string& name) {
  if (name.rfind("step_", 0) != 0 || name.size() == 5) return -1;
  for (const char c : name.substr(5)) {
    if (c < '0' || c > '9') return -1;
  }
  return std::stoll(name.substr(5));
}

void discard(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) log::warn(cat(path.string(), ": cannot remove: ", code.message()));
}

Json manifest_of(const fs::path& dir) {
  const fs::path path = dir / "manifest.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored))
    throw CheckpointError(dir.string(), ": no manifest.json: not a checkpoint, or damaged");
  Json manifest;
  try {
    manifest = read_json(path);
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
  if (manifest.value("version", 0) != kVersion) {
    throw CheckpointError(path.string(), ": version ", manifest.value("version", 0),
                          ", this program reads ", kVersion);
  }
  return manifest;
}

// Throws CheckpointError naming the first file that is not as the manifest says.
Json verify(const fs::path& dir) {
  Json manifest = manifest_of(dir);
  try {
    for (const auto& [name, entry] : manifest.at("files").items()) {
      const fs::path path = dir / name;
      std::error_code missing;
      const auto size = fs::file_size(path, missing);
      if (missing) throw CheckpointError(path.string(), ": the checkpoint's file is missing");
      if (size != entry.at("size").get<uint64_t>()) {
        throw CheckpointError(path.string(), ": ", size, " bytes, the manifest says ",
                              entry.at("size").get<uint64_t>(), ": truncated or altered");
      }
      if (hex64(hash_file(path)) != entry.at("xxh3").get<std::string>()) {
        throw CheckpointError(path.string(),
                              ": its content differs from the manifest's hash: altered");
      }
    }
  } catch (const Json::exception& e) {
    throw CheckpointError((dir / "manifest.json").string(), ": malformed: ", e.what());
  }
  return manifest;
}

void prune(const fs::path& run_dir, int64_t keep) {
  const std::vector<int64_t> steps = list_train_checkpoints(run_dir);
  for (size_t i = 0; i + static_cast<size_t>(keep) < steps.size(); ++i) {
    // Renamed first: a crash in the middle of the removal leaves no folder that looks whole.
    const fs::path dir = train_checkpoint_dir(run_dir, steps[i]);
    const fs::path doomed = dir.string() + ".old";
    std::error_code code;
    fs::rename(dir, doomed, code);
    discard(code ? dir : doomed);
  }
}

}  // namespace

fs::path train_checkpoint_dir(const fs::path& run_dir, int64_t step) {
  return checkpoints_dir(run_dir) / cat("step_", step);
}

std::vector<int64_t> list_train_checkpoints(const fs::path& run_dir) {
  std::vector<int64_t> steps;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(checkpoints_dir(run_dir), ignored)) {
    const int64_t step = step_of(entry.path().filename().string());
    if (step >= 0) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void write_train_checkpoint(const fs::path& run_dir, const TrainCheckpoint& checkpoint,
                            int64_t keep) {
  const fs::path dir = train_checkpoint_dir(run_dir, checkpoint.step);
  const fs::path temporary = dir.string() + ".tmp";
  make_dirs(checkpoints_dir(run_dir));
  for (const auto& entry : fs::directory_iterator(checkpoints_dir(run_dir))) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".tmp" || extension == ".old") discard(entry.path());  // left by a crash
  }
  try {
    make_dirs(temporary);
    write_safetensors(temporary / kTensorFile, checkpoint.tensors);
    write_file_atomic(temporary / "config.yaml", checkpoint.config_yaml);
    write_file_atomic(temporary / "state.json", checkpoint.state.dump(1));
    OrderedJson manifest = {{"version", kVersion}, {"step", checkpoint.step}};
    for (const char* name : kFiles) {
      manifest["files"][name] = {{"size", fs::file_size(temporary / name)},
                                 {"xxh3", hex64(hash_file(temporary / name))}};
    }
    manifest["frozen"] = checkpoint.frozen;
    write_file_atomic(temporary / "manifest.json", manifest.dump(1));
    fsync_dir(temporary);
    const fs::path replaced = dir.string() + ".old";  // after a resume from an older checkpoint
    if (fs::exists(dir)) fs::rename(dir, replaced);
    fs::rename(temporary, dir);
    fsync_dir(checkpoints_dir(run_dir));
    if (fs::exists(replaced)) discard(replaced);
  } catch (const std::exception& e) {
    discard(temporary);
    throw InternalError("cannot save the checkpoint of step ", checkpoint.step, ": ", e.what(),
                        ". Earlier checkpoints are untouched.");
  }
  prune(run_dir, keep);
}

TrainCheckpoint read_train_checkpoint(const fs::path& dir) {
  TrainCheckpoint out;
  Json manifest;
  try {
    manifest = verify(dir);
  } catch (const CheckpointError& e) {
    const fs::path run_dir = dir.parent_path().parent_path();
    std::vector<int64_t> steps = list_train_checkpoints(run_dir);
    for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
      const fs::path older = train_checkpoint_dir(run_dir, *it);
      if (fs::weakly_canonical(older) == fs::weakly_canonical(dir)) continue;
      try {
        verify(older);
      } catch (const CheckpointError&) {
        continue;
      }
      throw CheckpointError(
          e.what(), ". The checkpoint of step ", *it,
          " is whole: remove the damaged one to go on from there, or run with --resume ",
          older.string());
    }
    throw CheckpointError(
        e.what(), ". No other checkpoint of this run is whole; --resume never starts over.");
  }
  out.step = manifest.at("step").get<int64_t>();
  for (const auto& [group, hash] : manifest.at("frozen").items())
    out.frozen[group] = hash.get<std::string>();
  out.config_yaml = read_file(dir / "config.yaml");
  out.state = read_json(dir / "state.json");
  const SourcePtr source = open_safetensors(dir / kTensorFile);
  for (const std::string& name : source->names()) out.tensors[name] = source->read(name);
  return out;
}

}  // namespace mgm
