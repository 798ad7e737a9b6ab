// How the ranks of a run share a model: who holds which part of every flat buffer, and who holds
// the same part. Arithmetic alone; no torch, no communication.
//
//   mode       parameters     gradients      optimizer state   shard_size
//   replicate  whole          whole          whole             1
//   zero1      whole          whole          part              world
//   zero2      whole          part           part              world
//   zero3      part           part           part              world
//   hybrid     part           part           part              dist.shard_size, replicated across
//
// The experts of a mixture may be dealt to `expert_ranks` ranks in a row, an expert group
// (dist.expert_parallel). Ranks with the same expert_rank hold the same experts and share those as
// all ranks share the rest: of_experts() is how they see each other.
//
// Ranks of one shard group have consecutive numbers (a node's GPUs); ranks with the same
// shard_rank form a replica group.
#pragma once

#include <cstdint>
#include <string>

#include "config/run_config.h"

namespace mgm {

struct Topology {
  DistMode mode = DistMode::kReplicate;
  int rank = 0, world = 1;
  int shard_size = 1;    // ranks among which a flat buffer is cut
  int replicas = 1;      // ranks that hold the same part
  int expert_ranks = 1;  // ranks that a block's experts are dealt to

  int shard_rank() const { return rank % shard_size; }
  int replica_rank() const { return rank / shard_size; }
  int expert_rank() const { return rank % expert_ranks; }
  int expert_group() const { return rank / expert_ranks; }
  // Whole parameters exist only around their use.
  bool shards_parameters() const { return mode == DistMode::kZero3 || mode == DistMode::kHybrid; }
  // Gradients leave a rank after every micro-batch; otherwise they add up in a whole fp32 buffer
  // and leave once per step.
  bool reduces_every_micro_batch() const {
    return shards_parameters() || (mode == DistMode::kZero2 && shard_size > 1);
  }
  Topology of_experts() const;
};

// A run's topology for most of its parameter groups, and that for those of dealt experts.
struct Topologies {
  explicit Topologies(const Topology& topology) : run(topology), experts(topology.of_experts()) {}
  const Topology& of(bool dealt_experts) const { return dealt_experts ? experts : run; }

  Topology run, experts;
};

const char* name_of(DistMode mode);  // as in YAML
// "zero3 over 8 ranks", "hybrid: 2 groups of 4 ranks".
std::string describe(const Topology& topology);

// `local_world`: ranks of a node, which a hybrid shard group has unless dist.shard_size says
// otherwise. Throws ConfigError naming dist.shard_size or dist.expert_parallel and the sizes that
// would do, or dist.virtual_shards if strict leaves cannot be dealt to so many ranks.
Topology make_topology(const DistConfig& config, int rank, int world, int local_world);

// Elements that segments and parts are aligned to: 512 bytes in bf16 (grouped GEMMs and copies want
// 16 to 128), and the chunk that strict gradient norms add up in.
inline constexpr int64_t kFlatAlign = 256;

inline int64_t aligned(int64_t n) { return (n + kFlatAlign - 1) / kFlatAlign * kFlatAlign; }
// Length of a flat buffer of n elements that is cut into `parts` equal aligned parts.
inline int64_t padded(int64_t n, int parts) {
  const int64_t unit = kFlatAlign * parts;
  return (n + unit - 1) / unit * unit;
}

}  // namespace mgm
