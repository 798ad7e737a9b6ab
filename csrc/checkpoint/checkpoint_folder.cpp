#include "checkpoint/checkpoint_folder.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/log.h"

namespace mgm {
namespace {

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

fs::path temporary_of(const fs::path& dir) { return dir.string() + ".tmp"; }

void discard(const fs::path& path) {
  std::error_code code;
  fs::remove_all(path, code);
  if (code) log::warn(cat(path.string(), ": cannot remove: ", code.message()));
}

// Renamed first: a crash in the middle of the removal leaves no folder that looks published.
void remove_published(const fs::path& dir) {
  const fs::path doomed = temporary_of(dir);
  std::error_code code;
  fs::rename(dir, doomed, code);
  discard(code ? dir : doomed);
}

void clean_up(const fs::path& folder) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string extension = entry.path().extension().string();
    if ((extension == ".tmp" || extension == ".old") &&
        checkpoint_step(entry.path().stem().string()) >= 0)
      leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) {
    const fs::path published = folder / path.stem();
    if (path.extension() == ".old" && !fs::exists(published)) {
      fs::rename(path, published);  // the crash was between the two renames of a replacement
    } else {
      discard(path);
    }
  }
}

}  // namespace

fs::path train_checkpoint_dir(const fs::path& run_dir, int64_t step) {
  return checkpoints_dir(run_dir) / cat("step_", step);
}

fs::path temporary_checkpoint_dir(const fs::path& run_dir, int64_t step) {
  return temporary_of(train_checkpoint_dir(run_dir, step));
}

int64_t checkpoint_step(const std::string& name) {
  constexpr size_t kPrefix = 5, kMostDigits = 18;  // 10^18 fits 64 bits
  if (name.rfind("step_", 0) != 0 || name.size() > kPrefix + kMostDigits) return -1;
  int64_t step = 0;
  for (const char c : name.substr(kPrefix)) {
    if (c < '0' || c > '9') return -1;
    step = step * 10 + (c - '0');
  }
  return name == cat("step_", step) ? step : -1;
}

std::vector<int64_t> list_train_checkpoints(const fs::path& run_dir) {
  std::vector<int64_t> steps;
  const fs::path folder = checkpoints_dir(run_dir);
  if (!fs::exists(folder)) return steps;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const int64_t step = checkpoint_step(entry.path().filename().string());
    if (step >= 0 && entry.is_directory()) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

fs::path find_train_checkpoint(const fs::path& from) {
  if (fs::exists(from / "manifest.json")) return from;
  const std::vector<int64_t> steps = list_train_checkpoints(from);
  if (steps.empty()) {
    throw CheckpointError(from.string(),
                          ": is neither a checkpoint (no manifest.json) nor a run folder with one "
                          "(no checkpoints/step_N)");
  }
  return train_checkpoint_dir(from, steps.back());
}

void begin_checkpoint(const fs::path& run_dir, int64_t step) {
  make_dirs(checkpoints_dir(run_dir));
  fsync_dir(run_dir);
  clean_up(checkpoints_dir(run_dir));
  make_dirs(temporary_checkpoint_dir(run_dir, step));
}

// Where step_N exists already (the run went back to an older checkpoint) the two are exchanged in
// one step; file systems that cannot do that take two.
void publish_checkpoint(const fs::path& run_dir, int64_t step) {
  const fs::path dir = train_checkpoint_dir(run_dir, step), temporary = temporary_of(dir);
  const fs::path old = dir.string() + ".old";
  fsync_dir(temporary);
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

void prune_checkpoints(const fs::path& run_dir, int64_t written, int64_t keep) {
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

}  // namespace mgm
