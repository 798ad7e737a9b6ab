#include "checkpoint/hf_directory.h"

#include "base/error.h"
#include "formats/shard_index.h"

namespace mgm {
namespace {

void check_space(const fs::path& parent, uint64_t needed) {
  std::error_code code;
  const fs::space_info space = fs::space(parent, code);
  if (!code && space.available < needed) {
    throw InternalError(parent.string(), ": the model needs ",
                        human_bytes(static_cast<double>(needed)), ", the disk has ",
                        human_bytes(static_cast<double>(space.available)),
                        "; free some space or choose another folder");
  }
}

void check_files(const HfDirectory& content) {
  if (content.tensors.empty() && content.tensor_files.empty()) {
    throw CheckpointError("a model directory without tensors");
  }
  const auto check_name = [](const std::string& name) {
    MGM_CHECK(!name.empty() && name.find('/') == name.npos && name != "." && name != "..",
              "file name '", name, "'");
    MGM_CHECK(name.rfind("model", 0) != 0 || name.find(".safetensors") == name.npos, "'", name,
              "' is a name of the weights");
  };
  for (const auto& [name, text] : content.files) check_name(name);
  for (const auto& [name, tensors] : content.tensor_files) check_name(name);
}

uint64_t needed_bytes(const HfDirectory& content) {
  uint64_t needed = 0;
  for (const TensorSpec& spec : content.tensors) needed += spec.bytes();
  for (const auto& [name, tensors] : content.tensor_files) {
    for (const TensorSpec& spec : tensors) needed += spec.bytes();
  }
  return needed;
}

void write_shards(const fs::path& dir, const HfDirectory& content, uint64_t max_shard_bytes) {
  const auto shards = plan_shards(content.tensors, max_shard_bytes);
  ShardIndex index;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shards.size() == 1
                                 ? "model.safetensors"
                                 : strf("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    std::vector<TensorSpec> specs;
    for (const size_t t : shards[i]) {
      const TensorSpec& spec = content.tensors[t];
      MGM_CHECK(index.weight_map.emplace(spec.name, file).second, "tensor '", spec.name,
                "' is written twice");
      index.total_size += spec.bytes();
      uint64_t elements = 1;
      for (const int64_t size : spec.shape) elements *= static_cast<uint64_t>(size);
      index.total_parameters += elements;
      specs.push_back(spec);
    }
    write_safetensors(dir / file, specs, content.get);
  }
  if (shards.size() > 1) {
    write_file_atomic(dir / "model.safetensors.index.json", make_shard_index(index));
  }
}

// "out/" names the same folder as "out", but "out/.tmp" would lie inside it.
fs::path bare(const fs::path& dir) { return dir.has_filename() ? dir : dir.parent_path(); }
fs::path beside(const fs::path& dir, const char* ending) { return bare(dir).string() + ending; }

// In a folder that is being written: who finds one left by a crash knows that it may go.
constexpr const char* kUnfinished = ".mgm_unfinished";

// Both renames are atomic, the pair is not: a crash between them leaves `dir`.old and `dir`.tmp,
// both whole.
void publish(const fs::path& temporary, const fs::path& dir) {
  const fs::path old = beside(dir, ".old");
  const bool exists = fs::exists(dir);
  if (exists) fs::rename(dir, old);
  fs::rename(temporary, dir);
  fsync_dir(dir.has_parent_path() ? dir.parent_path() : fs::path("."));
  if (exists) fs::remove_all(old);
}

}  // namespace

std::vector<std::vector<size_t>> plan_shards(const std::vector<TensorSpec>& tensors,
                                             uint64_t max_shard_bytes) {
  std::vector<std::vector<size_t>> shards;
  std::vector<size_t> current;
  uint64_t filled = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = tensors[i].bytes();
    if (bytes > max_shard_bytes) {
      shards.push_back({i});
      continue;
    }
    if (filled + bytes > max_shard_bytes) {
      shards.push_back(std::move(current));
      current.clear();
      filled = 0;
    }
    current.push_back(i);
    filled += bytes;
  }
  if (!current.empty()) shards.push_back(std::move(current));
  return shards;
}

void check_hf_target(const fs::path& dir, bool replace) {
  if (dir.empty()) throw ConfigError("the folder to write is named '': no folder");
  const fs::path temporary = beside(dir, ".tmp"), old = beside(dir, ".old");
  if (fs::exists(fs::symlink_status(temporary)) && !fs::exists(temporary / kUnfinished)) {
    throw CheckpointError(temporary.string(), ": is in the way, since ", dir.string(),
                          " is first written there; move it, or choose another folder");
  }
  if (!fs::exists(fs::symlink_status(dir))) return;
  if (!fs::is_directory(fs::symlink_status(dir))) {
    throw CheckpointError(dir.string(), ": exists and is no folder; choose another one");
  }
  const bool empty = fs::is_empty(dir);
  if (!empty && !replace) {
    throw CheckpointError(dir.string(),
                          ": exists and is not empty; choose another folder, or replace it with "
                          "--replace");
  }
  if (fs::exists(fs::symlink_status(old))) {
    throw CheckpointError(old.string(), ": is in the way, since what is replaced goes there until ",
                          "the new one is in place; move it, or choose another folder");
  }
  if (empty) return;
  bool has_config = false;
  for (const auto& entry : fs::directory_iterator(dir)) {
    for (const char* name : {"config.json", "open_clip_config.json", "adapter_config.json"}) {
      has_config |= entry.path().filename() == name;
    }
    if (entry.is_directory()) {
      throw CheckpointError(dir.string(), ": not replaced, since it has a sub-folder ('",
                            entry.path().filename().string(),
                            "') and so may hold more than a model; remove it yourself");
    }
  }
  if (!has_config) {
    throw CheckpointError(dir.string(),
                          ": not replaced, since it has no config.json and so is no "
                          "model directory; remove it yourself");
  }
}

void write_hf_directory(const fs::path& path, const HfDirectory& content,
                        const HfDirectoryOptions& options) {
  check_files(content);
  const fs::path dir = bare(path);
  check_hf_target(dir, options.replace);
  const fs::path parent = dir.has_parent_path() ? dir.parent_path() : fs::path(".");
  make_dirs(parent);
  check_space(parent, needed_bytes(content));
  const fs::path temporary = beside(dir, ".tmp");
  try {
    fs::remove_all(temporary);
    make_dirs(temporary);
    write_file_atomic(temporary / kUnfinished, "");
    for (const auto& [name, text] : content.files) write_file_atomic(temporary / name, text);
    write_shards(temporary, content, options.max_shard_bytes);
    for (const auto& [name, tensors] : content.tensor_files) {
      write_safetensors(temporary / name, tensors, content.get);
    }
    if (options.check) options.check(temporary);
    fs::remove(temporary / kUnfinished);
    fsync_dir(temporary);
    publish(temporary, dir);
  } catch (const std::exception& e) {
    std::error_code ignored;  // the error that counts is on its way
    fs::remove_all(temporary, ignored);
    if (!dynamic_cast<const fs::filesystem_error*>(&e)) throw;
    throw InternalError(dir.string(), ": cannot write the model directory: ", e.what());
  }
}

}  // namespace mgm
