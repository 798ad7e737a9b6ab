#include "dist/rank_groups.h"

#include <algorithm>

#include "base/error.h"
#include "base/strings.h"

namespace mgm {

std::string members(const GroupPlace& group) {
  constexpr int kShown = 8;
  if (group.size == 1) return cat("rank ", group.first);
  const int last = group.first + (group.size - 1) * group.stride;
  if (group.stride == 1) return cat("ranks ", group.first, "-", last);
  std::vector<std::string> out;
  for (int i = 0; i < std::min(group.size, kShown); ++i) {
    out.push_back(std::to_string(group.first + i * group.stride));
  }
  return cat("ranks ", join(out, ", "), group.size > kShown ? cat(", ..., ", last) : "");
}

RankGroups::RankGroups(const Topology& t) {
  const auto place = [&](const std::string& name, int size, int first, int stride) {
    return GroupPlace{name, size, first, stride, (t.rank - first) / stride};
  };
  control = place("control", t.world, 0, 1);
  world = place("world", t.world, 0, 1);
  const int shard = t.replica_rank() * t.shard_size;
  gather = place(cat("gather.", t.replica_rank()), t.shard_size, shard, 1);
  reduce = place(cat("reduce.", t.replica_rank()), t.shard_size, shard, 1);
  replica = t.shard_size == 1
                ? world
                : place(cat("replica.", t.shard_rank()), t.replicas, t.shard_rank(), t.shard_size);
  if (t.expert_ranks == 1) return;  // nothing is dealt: nobody asks
  // Number i among the ranks with the same experts is rank expert_rank + i expert_ranks.
  const Topology e = t.of_experts();
  const auto of_experts = [&](const char* name, int which, int size, int first, int stride) {
    return place(cat(name, ".", t.expert_rank(), ".", which), size,
                 t.expert_rank() + first * t.expert_ranks, stride * t.expert_ranks);
  };
  const int e_shard = e.replica_rank() * e.shard_size;
  expert_world = of_experts("expert_world", 0, e.world, 0, 1);
  expert_gather = of_experts("expert_gather", e.replica_rank(), e.shard_size, e_shard, 1);
  expert_reduce = of_experts("expert_reduce", e.replica_rank(), e.shard_size, e_shard, 1);
  expert_replica = e.shard_size == 1 ? expert_world
                                     : of_experts("expert_replica", e.shard_rank(), e.replicas,
                                                  e.shard_rank(), e.shard_size);
  exchange = place(cat("exchange.", t.expert_group()), t.expert_ranks,
                   t.expert_group() * t.expert_ranks, 1);
}

std::vector<const GroupPlace*> RankGroups::connected() const {
  std::vector<const GroupPlace*> out;
  for (const GroupPlace* group : {&world, &gather, &reduce, &replica, &expert_world, &expert_gather,
                                  &expert_reduce, &expert_replica, &exchange}) {
    const bool shared = (group == &replica && replica.name == world.name) ||
                        (group == &expert_replica && expert_replica.name == expert_world.name);
    if (group->size > 1 && !shared) out.push_back(group);
  }
  return out;
}

}  // namespace mgm
