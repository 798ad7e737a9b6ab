#include "dist/topology.h"

#include "base/error.h"

namespace mgm {

Topology make_topology(const DistConfig& config, int rank, int world, int local_world) {
  MGM_CHECK(world > 0 && rank >= 0 && rank < world, "rank ", rank, " of ", world);
  Topology t;
  t.mode = config.mode;
  t.rank = rank;
  t.world = world;
  switch (config.mode) {
    case DistMode::kReplicate:
      break;
    case DistMode::kZero1:
    case DistMode::kZero2:
    case DistMode::kZero3:
      t.shard_size = world;
      break;
    case DistMode::kHybrid: {
      const int64_t size = config.shard_size > 0 ? config.shard_size : local_world;
      if (size > world || world % size != 0) {
        std::vector<std::string> fitting;
        for (int s = 1; s <= world; ++s) {
          if (world % s == 0) fitting.push_back(std::to_string(s));
        }
        throw ConfigError(
            "dist.shard_size: ", size, config.shard_size > 0 ? "" : " (the ranks of a node)",
            " does not divide the world of ", world, " ranks; these do: ", join(fitting, ", "));
      }
      t.shard_size = static_cast<int>(size);
      break;
    }
  }
  t.replicas = world / t.shard_size;
  if (t.shard_size == 1) t.mode = DistMode::kReplicate;  // nothing is cut
  return t;
}

const char* name_of(DistMode mode) {
  constexpr const char* kNames[] = {"replicate", "zero1", "zero2", "zero3", "hybrid"};
  return kNames[static_cast<int>(mode)];
}

std::string describe(const Topology& t) {
  const std::string mode = name_of(t.mode);
  if (t.shard_size == 1 || t.replicas == 1) return cat(mode, " over ", t.world, " ranks");
  return cat(mode, ": ", t.replicas, " groups of ", t.shard_size, " ranks");
}

}  // namespace mgm
