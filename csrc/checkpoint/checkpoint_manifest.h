// manifest.json of a training checkpoint: what the other files are meant to be. It is the last file
// to be written and carries a hash of itself.
//
//   {"version": 2, "step": ..., "time": "2025-11-26T20:14:05Z", "mode": "zero2", "world": 4,
//    "files": {"rank_0.safetensors": {"size": ..., "xxh3": "16 hex digits"}, ...},
//    "frozen": {"<group>": "<hash>", ...}, "xxh3": "of this text without this entry"}
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/fs.h"

namespace mgm {

inline constexpr const char* kConfigFile = "config.yaml";
inline constexpr const char* kStateFile = "state.json";

struct ManifestEntry {
  uint64_t size = 0;
  std::string xxh3;  // of what was to be written, not of what the disk then held
};

struct Manifest {
  int64_t step = 0;
  std::string time;  // UTC, when it was published
  std::string mode;
  int world = 1;
  std::map<std::string, ManifestEntry> files;
  // Frozen weights are not stored; a hash per group lets a resume refuse other ones by name.
  std::map<std::string, std::string> frozen;

  uint64_t total_bytes() const;
};

std::string shard_file(int rank);  // "rank_3.safetensors"

void write_manifest(const fs::path& dir, const Manifest& manifest);
// Throws CheckpointError: missing, malformed, of another version or step than the folder's name
// says, altered.
Manifest read_manifest(const fs::path& dir);

// Throw CheckpointError naming the file: missing, of another size, of another content; a shard of
// another save is called that.
void check_file_size(const fs::path& dir, const Manifest& manifest, const std::string& file);
void check_file(const fs::path& dir, const Manifest& manifest, const std::string& file);

}  // namespace mgm
