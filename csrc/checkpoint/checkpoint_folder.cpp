#include "checkpoint/checkpoint_folder.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/log.h"

namespace mgm {
namespace {

fs::path checkpoints_dir(const fs::path& run_dir) { return run_dir / "checkpoints"; }

constexpr const char* kSetAside = "set_aside";

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

// Folders of steps behind `step`, the newest first: published ones, and step_N.old, which clean_up
// would put back.
std::vector<fs::path> behind(const fs::path& run_dir, int64_t step) {
  std::vector<std::pair<int64_t, fs::path>> found;
  if (!fs::exists(checkpoints_dir(run_dir))) return {};
  for (const auto& entry : fs::directory_iterator(checkpoints_dir(run_dir))) {
    const fs::path& path = entry.path();
    const int64_t at =
        checkpoint_step((path.extension() == ".old" ? path.stem() : path.filename()).string());
    if (at > step && entry.is_directory()) found.emplace_back(at, path);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<fs::path> out;
  for (auto& [at, path] : found) out.push_back(std::move(path));
  return out;
}

// Leaves checkpoints/set_aside with a copy of the metrics, and with what an unfinished move of the
// same state of the run has put there: the metrics are cut only behind the last move.
void prepare_set_aside(const fs::path& folder, const fs::path& metrics) {
  const fs::path copy = folder / metrics.filename();
  const std::string now = fs::exists(metrics) ? read_file(metrics) : "";
  if (fs::exists(copy) && read_file(copy) == now) return;
  if (fs::exists(folder)) {
    log::warn(cat(folder.string(), ": removed what was set aside there before"));
    fs::remove_all(folder);
  }
  make_dirs(folder);
  write_file_atomic(copy, now);
  fsync_dir(folder.parent_path());
}

std::vector<int64_t> steps_in(const fs::path& folder) {
  std::vector<int64_t> steps;
  if (!fs::exists(folder)) return steps;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const int64_t step = checkpoint_step(entry.path().filename().string());
    if (step >= 0 && entry.is_directory()) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

double bytes_below(const fs::path& folder) {
  double sum = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) sum += static_cast<double>(entry.file_size());
  }
  return sum;
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
  return steps_in(checkpoints_dir(run_dir));
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

std::string set_aside_checkpoints(const fs::path& run_dir, int64_t step, const fs::path& metrics) {
  const std::vector<fs::path> moving = behind(run_dir, step);
  if (moving.empty()) return "";
  const fs::path folder = set_aside_dir(run_dir);
  prepare_set_aside(folder, metrics);
  std::vector<std::string> names;
  for (const fs::path& path : moving) {
    const fs::path target = folder / path.filename();
    fs::remove_all(target);  // the same step of the same history
    fs::rename(path, target);
    fsync_dir(folder.parent_path());
    names.push_back(path.filename().string());
  }
  fsync_dir(folder);
  return cat("the run goes back to step ", step, ": ", join(names, ", "), " and a copy of ",
             metrics.filename().string(), " moved to ", folder.string(), " (",
             human_bytes(bytes_below(folder)),
             "), which stays until the run goes back again or you remove it. To take this back, "
             "remove what the run then has behind step ",
             step, ", move step_* from there to ", checkpoints_dir(run_dir).string(), " and ",
             metrics.filename().string(), " to ", run_dir.string(), ", and start without --resume");
}

fs::path set_aside_dir(const fs::path& run_dir) { return checkpoints_dir(run_dir) / kSetAside; }

std::vector<int64_t> list_set_aside(const fs::path& run_dir) {
  return steps_in(set_aside_dir(run_dir));
}

bool is_set_aside(const fs::path& checkpoint) {
  return fs::weakly_canonical(checkpoint).parent_path().filename() == kSetAside;
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
