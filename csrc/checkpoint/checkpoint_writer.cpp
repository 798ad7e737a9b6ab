#include "checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/timer.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_manifest.h"
#include "checkpoint/tensor_writer.h"

namespace mgm {
namespace {

// What the others of a save do next; an empty text: all is well.
constexpr const char* kFolder = "the folder";
constexpr const char* kOutcome = "the outcome";

// What `act` threw, as text; "" if nothing.
template <class Act>
std::string failure_of(const Act& act) {
  try {
    act();
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::string host_name() {
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  return host;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm tm{};
  ::gmtime_r(&now, &tm);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
  return text;
}

// A folder that another host has just made may show a little later on a network file system.
void expect_folder(const fs::path& folder) {
  constexpr double kPatience = 5;
  const Timer timer;
  while (!fs::is_directory(folder)) {
    if (timer.seconds() > kPatience) {
      throw InternalError(folder.string(),
                          ": is not there, although rank 0 made it: run.dir must be a folder that "
                          "all ranks share");
    }
    ::usleep(50'000);
  }
}

ManifestEntry write_shard(const fs::path& folder, const CheckpointContent& content,
                          const std::vector<ShardTensor>& shard, const SaveChannel& channel) {
  std::vector<TensorSpec> specs;
  std::map<std::string, const at::Tensor*> values;
  for (const ShardTensor& tensor : shard) {
    specs.push_back({tensor.name, at::kFloat, tensor.values.sizes().vec()});
    values[tensor.name] = &tensor.values;
  }
  const std::map<std::string, std::string> about = {
      {"step", cat(content.step)}, {"rank", cat(channel.rank())}, {"world", cat(channel.world())}};
  const WrittenFile written = write_safetensors(
      folder / shard_file(channel.rank()), specs,
      [&](const std::string& name) { return *values.at(name); }, about);
  return {written.size, hex64(written.hash)};
}

// What this rank tells rank 0: its shard's manifest entry, or what went wrong.
std::string write_and_report(const fs::path& folder, const CheckpointContent& content,
                             const ShardGetter& shard, const SaveChannel& channel) {
  Json report;
  const std::string failure = failure_of([&] {
    const std::vector<ShardTensor>& tensors = shard();
    expect_folder(folder);
    const ManifestEntry entry = write_shard(folder, content, tensors, channel);
    report = {{"size", entry.size}, {"xxh3", entry.xxh3}};
  });
  if (!failure.empty()) report = {{"error", failure}, {"host", host_name()}};
  return report.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Rank 0, when every shard is there. Returns the bytes of all files.
uint64_t publish(const fs::path& run_dir, const fs::path& folder, const CheckpointContent& content,
                 const StateLayout& layout, const std::vector<ManifestEntry>& shards) {
  Manifest manifest;
  manifest.step = content.step;
  manifest.time = utc_now();
  manifest.mode = layout.mode;
  manifest.world = layout.world;
  manifest.frozen = content.frozen;
  for (size_t rank = 0; rank < shards.size(); ++rank)
    manifest.files[shard_file(static_cast<int>(rank))] = shards[rank];
  const auto write_text = [&](const char* name, const std::string& text) {
    write_file_atomic(folder / name, text);
    manifest.files[name] = {text.size(), hex64(hash64(text))};
  };
  write_text(kConfigFile, content.config_yaml);
  Json state = content.state;
  state["layout"] = to_json(layout);
  write_text(kStateFile, state.dump(1));
  write_manifest(folder, manifest);
  publish_checkpoint(run_dir, content.step);
  return manifest.total_bytes();
}

std::string by_rank(size_t rank, const std::string& host, const std::string& failure) {
  return cat("rank ", rank, " on ", host, ": ", failure);
}

// Shards by rank from what the ranks reported; throws what went wrong on which of them.
std::vector<ManifestEntry> read_reports(const std::vector<std::string>& reports) {
  std::vector<ManifestEntry> out;
  std::string first;
  int failed = 0;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    const Json report = Json::parse(reports[rank]);
    if (report.contains("error")) {
      if (failed++ > 0) continue;
      first = report.at("error").get<std::string>();
      if (reports.size() > 1) first = by_rank(rank, report.at("host").get<std::string>(), first);
    } else {
      out.push_back({report.at("size").get<uint64_t>(), report.at("xxh3").get<std::string>()});
    }
  }
  if (failed > 1) first += cat(" (and ", failed - 1, " more ranks)");
  if (failed > 0) throw InternalError(first);
  return out;
}

// What went wrong on rank 0, which is the one to do it.
std::string failure_of_first(const SaveChannel& channel, const std::function<void()>& what) {
  const std::string failure = failure_of(what);
  return failure.empty() || channel.world() == 1 ? failure : by_rank(0, host_name(), failure);
}

// Rank 0's part of a save after its own shard; returns the bytes of all files.
uint64_t finish(const fs::path& run_dir, const fs::path& folder, const CheckpointContent& content,
                const StateLayout& layout, SaveChannel& channel) {
  const std::vector<ManifestEntry> shards = read_reports(channel.await_reports());
  uint64_t bytes = 0;
  const std::string failure =
      failure_of_first(channel, [&] { bytes = publish(run_dir, folder, content, layout, shards); });
  if (!failure.empty()) throw InternalError(failure);
  return bytes;
}

WrittenCheckpoint save_together(const fs::path& run_dir, const CheckpointContent& content,
                                const StateLayout& layout, const ShardGetter& shard,
                                SaveChannel& channel) {
  const bool first = channel.rank() == 0;
  const fs::path folder = temporary_checkpoint_dir(run_dir, content.step);
  WrittenCheckpoint out;
  std::string failure;
  if (first) {
    failure = failure_of_first(channel, [&] { begin_checkpoint(run_dir, content.step); });
    channel.announce(kFolder, failure);
  } else {
    failure = channel.await(kFolder);
  }
  if (failure.empty()) {
    channel.report(write_and_report(folder, content, shard, channel));
    if (first) {
      failure = failure_of([&] { out.bytes = finish(run_dir, folder, content, layout, channel); });
    }
  }
  if (first) {
    if (!failure.empty()) {
      std::error_code ignored;  // the error that counts is on its way
      fs::remove_all(folder, ignored);
    }
    channel.announce(kOutcome, failure);
  } else {
    failure = channel.await(kOutcome);
  }
  if (!failure.empty()) throw InternalError(failure);
  return out;
}

}  // namespace

WrittenCheckpoint write_train_checkpoint(const fs::path& run_dir, const CheckpointContent& content,
                                         const StateLayout& layout, const ShardGetter& shard,
                                         int64_t keep, SaveChannel& channel) {
  MGM_CHECK(keep >= 1 && content.step >= 0, "keep ", keep, ", step ", content.step);
  WrittenCheckpoint out;
  try {
    out = save_together(run_dir, content, layout, shard, channel);
  } catch (const InternalError& e) {
    throw InternalError("cannot save the checkpoint of step ", content.step, ": ", e.what(),
                        ". Earlier checkpoints are untouched.");
  }
  if (channel.rank() == 0) {
    const std::string failure = failure_of([&] { prune_checkpoints(run_dir, content.step, keep); });
    if (!failure.empty()) log::warn(cat("older checkpoints stay: ", failure));
  }
  return out;
}

}  // namespace mgm
