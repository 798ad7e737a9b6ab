#include "checkpoint/train_checkpoint.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "base/json_problem.h"
#include "dist/agreement.h"

namespace mgm {
namespace {

// The files this rank checks: the largest first, each to the rank with the fewest bytes so far.
std::vector<std::string> share_of(const Manifest& manifest, const Ranks& ranks) {
  std::vector<std::pair<uint64_t, std::string>> files;
  for (const auto& [name, entry] : manifest.files) files.push_back({entry.size, name});
  std::sort(files.begin(), files.end(), std::greater<>());
  std::vector<uint64_t> load(static_cast<size_t>(ranks.size()), 0);
  std::vector<std::string> mine;
  for (const auto& [size, name] : files) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += size + 1;  // empty files are dealt round too
    if (least - load.begin() == ranks.rank()) mine.push_back(name);
  }
  std::sort(mine.begin(), mine.end());
  return mine;
}

fs::path normal(const fs::path& path) {
  const fs::path dir = fs::absolute(path).lexically_normal();
  return dir.has_filename() ? dir : dir.parent_path();  // "step_5/" is step_5
}

// Says which other checkpoint of the run could be used, and throws.
[[noreturn]] void refuse(const fs::path& dir, const std::string& problem, Ranks& ranks) {
  const int64_t step = checkpoint_step(dir.filename().string());
  const fs::path run_dir = dir.parent_path().parent_path();
  const std::optional<int64_t> other = newest_whole_checkpoint(run_dir, ranks, step);
  if (other) {
    throw CheckpointError(
        problem, ". The checkpoint of step ", *other,
        " is whole: remove the damaged one to go on from there, or run with --resume ",
        train_checkpoint_dir(run_dir, *other).string());
  }
  throw CheckpointError(problem,
                        ". No other checkpoint of this run is whole, and a run never starts over "
                        "by itself: use another run.dir, or remove the damaged checkpoint");
}

std::string text_of(const fs::path& path) {
  try {
    return read_file(path);
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
}

}  // namespace

TrainCheckpoint::TrainCheckpoint(const fs::path& path) : dir_(normal(path)) {
  manifest_ = read_manifest(dir_);
  config_yaml_ = text_of(dir_ / kConfigFile);
  const std::string source = (dir_ / kStateFile).string();
  try {
    state_ = parse_json(text_of(source), source);
    layout_ = std::make_shared<StateLayout>(parse_state_layout(state_.at("layout"), source));
    state_.erase("layout");
  } catch (const Json::exception& e) {
    throw CheckpointError(source, ": malformed: ", json_problem(e));
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
  if (layout_->world != manifest_.world) {
    throw CheckpointError(source, ": of ", layout_->world, " ranks, the manifest says ",
                          manifest_.world);
  }
  places_ = layout_->places();
}

const StateLayout::Place& TrainCheckpoint::place(const std::string& parameter) const {
  const auto it = places_.find(parameter);
  if (it == places_.end()) throw CheckpointError(dir_.string(), ": holds no state of ", parameter);
  return it->second;
}

const TensorSource& TrainCheckpoint::shard(int rank) const {
  SourcePtr& source = shards_[rank];
  if (!source) {
    check_file_size(dir_, manifest_, shard_file(rank));
    source = open_safetensors(dir_ / shard_file(rank));
  }
  return *source;
}

void TrainCheckpoint::read(const std::string& kind, const std::string& parameter, int64_t first,
                           int64_t count, const Sink& sink) const {
  const StateLayout::Place& where = place(parameter);
  const StateSegment& segment = *where.segment;
  MGM_CHECK(first >= 0 && count >= 0 && first + count <= segment.numel, parameter, ": elements ",
            first, " + ", count, " of ", segment.numel);
  const int64_t begin = segment.offset + first, end = begin + count;
  const std::string name = kind + "." + where.group->name;
  for (int rank = 0; rank < layout_->world; ++rank) {
    const FlatRange& range = where.group->ranges[static_cast<size_t>(rank)];
    const int64_t from = std::max(begin, range.begin), to = std::min(end, range.end);
    if (from >= to) continue;
    const TensorSource& source = shard(rank);
    const TensorInfo& info = source.info(name);
    if (info.type != at::kFloat || info.shape != std::vector<int64_t>{range.size()}) {
      throw CheckpointError(source.description(), ": tensor ", name, " is ", info.dtype, " of ",
                            info.bytes, " bytes, the layout says ", range.size(), " x F32");
    }
    sink(from - segment.offset, source.read(name).narrow(0, from - range.begin, to - from));
  }
}

void verify_train_checkpoint(const fs::path& path, Ranks& ranks) {
  together(ranks, "checkpoint is whole", [&] {
    const fs::path dir = normal(path);
    const Manifest manifest = read_manifest(dir);
    const std::vector<std::string> mine = share_of(manifest, ranks);
    for (const std::string& file : mine) check_file_size(dir, manifest, file);  // soon done
    for (const std::string& file : mine) check_file(dir, manifest, file);
  });
}

std::optional<int64_t> newest_whole_checkpoint(const fs::path& run_dir, Ranks& ranks,
                                               int64_t except) {
  // One rank's list: folders of a network file system may show late on others.
  std::string list;
  together(ranks, "list of checkpoints", [&] {
    if (!ranks.is_first()) return;
    for (const int64_t step : list_train_checkpoints(run_dir)) list += cat(step, " ");
  });
  list = gather_texts(ranks, list, "list of checkpoints").front();
  std::vector<std::string> steps = split(trim(list), ' ');
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    if (it->empty() || std::stoll(*it) == except) continue;
    try {
      verify_train_checkpoint(train_checkpoint_dir(run_dir, std::stoll(*it)), ranks);
      return std::stoll(*it);
    } catch (const CheckpointError&) {
      continue;
    }
  }
  return std::nullopt;
}

TrainCheckpoint open_train_checkpoint(const fs::path& path, Ranks& ranks) {
  const fs::path dir = normal(path);
  try {
    verify_train_checkpoint(dir, ranks);
  } catch (const CheckpointError& e) {
    refuse(dir, e.what(), ranks);
  }
  std::optional<TrainCheckpoint> out;
  together(ranks, "checkpoint opens", [&] { out.emplace(dir); });
  return std::move(*out);
}

}  // namespace mgm
