#include "checkpoint/checkpoint_manifest.h"

#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/json_problem.h"
#include "checkpoint/checkpoint_folder.h"
#include "formats/safetensors.h"

namespace mgm {
namespace {

constexpr int kVersion = 2;
constexpr int64_t kMostRanks = 1 << 20;
constexpr const char* kManifest = "manifest.json";
constexpr const char* kSelf = "xxh3";

std::string self_hash(Json manifest) {
  manifest.erase(kSelf);
  return hex64(hash64(manifest.dump()));
}

Manifest parse(const Json& json, const fs::path& path) {
  const auto version = json.at("version").get<int64_t>();
  if (version != kVersion) {
    throw CheckpointError(path.string(), ": version ", version, ", this program reads ", kVersion);
  }
  if (json.at(kSelf).get<std::string>() != self_hash(json)) {
    throw CheckpointError(path.string(), ": its content differs from its own hash: altered");
  }
  Manifest out;
  out.step = json.at("step").get<int64_t>();
  out.time = json.at("time").get<std::string>();
  out.mode = json.at("mode").get<std::string>();
  const auto world = json.at("world").get<int64_t>();
  if (world < 1 || world > kMostRanks)
    throw CheckpointError(path.string(), ": malformed: ", world, " ranks");
  out.world = static_cast<int>(world);
  out.frozen = json.at("frozen").get<std::map<std::string, std::string>>();
  for (const auto& [name, entry] : json.at("files").items()) {
    if (name.find('/') != name.npos || name == "." || name == "..")
      throw CheckpointError(path.string(), ": malformed: file name '", name, "'");
    out.files[name] = {entry.at("size").get<uint64_t>(), entry.at("xxh3").get<std::string>()};
  }
  std::vector<std::string> needed = {kConfigFile, kStateFile};
  for (int rank = 0; rank < out.world; ++rank) needed.push_back(shard_file(rank));
  for (const std::string& name : needed) {
    if (out.files.count(name) == 0)
      throw CheckpointError(path.string(), ": malformed: no entry for ", name);
  }
  const std::string folder = path.parent_path().filename().string();
  const int64_t named = checkpoint_step(folder);
  if (named >= 0 && named != out.step) {
    throw CheckpointError(path.string(), ": of step ", out.step, ", but the folder is named ",
                          folder, ": altered or moved");
  }
  return out;
}

// A shard says in its header which save it is of; "" where that is as it should be or unreadable.
std::string of_another_save(const fs::path& path, const Manifest& manifest) {
  try {
    const MappedFile file(path);
    const SafetensorsHeader header = parse_safetensors_header(
        {reinterpret_cast<const char*>(file.data()), file.size()}, file.size(), path.string());
    const auto value = [&](const char* key) {
      const auto it = header.metadata.find(key);
      return it == header.metadata.end() ? std::string() : it->second;
    };
    const std::string rank = value("rank"), step = value("step"), world = value("world");
    if (rank.empty() || step.empty() || world.empty()) return "";
    if (shard_file(std::stoi(rank)) == path.filename() && step == cat(manifest.step) &&
        world == cat(manifest.world)) {
      return "";
    }
    return cat("is the shard of rank ", rank, " of ", world, " of step ", step,
               "; this checkpoint is of step ", manifest.step, " and ", manifest.world,
               " ranks: files of two saves are mixed");
  } catch (const std::exception&) {
    return "";
  }
}

[[noreturn]] void refuse(const fs::path& path, const Manifest& manifest, const std::string& why) {
  const std::string mixed = of_another_save(path, manifest);
  throw CheckpointError(path.string(), ": ", mixed.empty() ? why : mixed);
}

}  // namespace

uint64_t Manifest::total_bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, entry] : files) sum += entry.size;
  return sum;
}

std::string shard_file(int rank) { return cat("rank_", rank, ".safetensors"); }

void write_manifest(const fs::path& dir, const Manifest& manifest) {
  Json json = {{"version", kVersion},      {"step", manifest.step},   {"time", manifest.time},
               {"mode", manifest.mode},    {"world", manifest.world}, {"files", Json::object()},
               {"frozen", manifest.frozen}};
  for (const auto& [name, entry] : manifest.files)
    json["files"][name] = {{"size", entry.size}, {"xxh3", entry.xxh3}};
  json[kSelf] = self_hash(json);
  write_file_atomic(dir / kManifest, json.dump(1));
}

Manifest read_manifest(const fs::path& dir) {
  const fs::path path = dir / kManifest;
  std::error_code ignored;
  if (!fs::exists(path, ignored))
    throw CheckpointError(dir.string(), ": no manifest.json: not a checkpoint, or damaged");
  try {
    return parse(read_json(path), path);
  } catch (const Json::exception& e) {
    throw CheckpointError(path.string(), ": malformed: ", json_problem(e));
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
}

void check_file_size(const fs::path& dir, const Manifest& manifest, const std::string& file) {
  const fs::path path = dir / file;
  std::error_code missing;
  const auto size = fs::file_size(path, missing);
  if (missing) throw CheckpointError(path.string(), ": cannot be read: ", missing.message());
  const uint64_t expected = manifest.files.at(file).size;
  if (size != expected) {
    refuse(path, manifest,
           cat(size, " bytes, the manifest says ", expected, ": truncated or altered"));
  }
}

void check_file(const fs::path& dir, const Manifest& manifest, const std::string& file) {
  check_file_size(dir, manifest, file);
  try {
    if (hex64(hash_file(dir / file)) == manifest.files.at(file).xxh3) return;
  } catch (const DataError& e) {
    throw CheckpointError(e.what());
  }
  refuse(dir / file, manifest, "its content differs from the manifest's hash: altered");
}

}  // namespace mgm
