#include "dist/topology.h"

#include "base/error.h"

namespace mgm {

namespace {

// Sizes that `fits` takes, in words.
template <class Fits>
std::string sizes_that(int world, const Fits& fits) {
  std::vector<std::string> out;
  for (int s = 1; s <= world; ++s) {
    if (fits(s)) out.push_back(std::to_string(s));
  }
  return join(out, ", ");
}

// Shard groups hold whole expert groups, so that parts of experts are cut like all others.
void check_expert_ranks(const Topology& t, int64_t n) {
  const auto fits = [&](int64_t s) {
    return t.world % s == 0 && (t.mode != DistMode::kHybrid || t.shard_size % s == 0);
  };
  if (fits(n)) return;
  throw ConfigError("dist.expert_parallel: ", n, " ranks do not divide ",
                    t.world % n != 0 ? cat("the world of ", t.world, " ranks")
                                     : cat("a shard group of ", t.shard_size, " ranks"),
                    "; these do: ", sizes_that(t.world, fits));
}

void check_leaves(const DistConfig& config, int world) {
  if (config.reduction != Reduction::kStrict || config.virtual_shards % world == 0) return;
  throw ConfigError("dist.virtual_shards: ", config.virtual_shards, " leaves cannot be dealt to ",
                    world, " ranks evenly; a multiple of ", world, " can");
}

}  // namespace

Topology Topology::of_experts() const {
  Topology t = *this;
  t.rank = rank / expert_ranks;
  t.world = world / expert_ranks;
  t.expert_ranks = 1;
  if (shard_size > 1) t.shard_size = shard_size / expert_ranks;
  t.replicas = t.world / t.shard_size;
  if (t.shard_size == 1) t.mode = DistMode::kReplicate;
  return t;
}

Topology make_topology(const DistConfig& config, int rank, int world, int local_world) {
  MGM_CHECK(world > 0 && rank >= 0 && rank < world, "rank ", rank, " of ", world);
  check_leaves(config, world);
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
        throw ConfigError(
            "dist.shard_size: ", size, config.shard_size > 0 ? "" : " (the ranks of a node)",
            " does not divide the world of ", world,
            " ranks; these do: ", sizes_that(world, [&](int s) { return world % s == 0; }));
      }
      t.shard_size = static_cast<int>(size);
      break;
    }
  }
  t.replicas = world / t.shard_size;
  if (t.shard_size == 1) t.mode = DistMode::kReplicate;  // nothing is cut
  check_expert_ranks(t, config.expert_parallel);
  t.expert_ranks = static_cast<int>(config.expert_parallel);
  return t;
}

const char* name_of(DistMode mode) {
  constexpr const char* kNames[] = {"replicate", "zero1", "zero2", "zero3", "hybrid"};
  return kNames[static_cast<int>(mode)];
}

std::string describe(const Topology& t) {
  const std::string mode = name_of(t.mode);
  const std::string experts =
      t.expert_ranks > 1 ? cat(", experts dealt to ", t.expert_ranks, " ranks") : std::string();
  if (t.shard_size == 1 || t.replicas == 1) return cat(mode, " over ", t.world, " ranks", experts);
  return cat(mode, ": ", t.replicas, " groups of ", t.shard_size, " ranks", experts);
}

}  // namespace mgm
