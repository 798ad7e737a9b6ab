#include "dist/ranks.h"

#include <csignal>

#include "base/error.h"
#include "dist/c10d_group.h"

namespace mgm {

Meeting meet(const LaunchEnv& env, double timeout_s) {
  Meeting out;
  out.env = env;
  if (env.world == 1) return out;
  // Gloo writes to sockets whose other end may be gone: an error with a name, not the end.
  ::signal(SIGPIPE, SIG_IGN);
  int port = env.master_port;
  const bool serve = env.rank == 0 && !env.store_is_served;
  // A launcher's store outlives a restart of the job: what the last attempt left must not be read.
  out.store =
      connect_store(env.master_host, &port, serve, timeout_s)->below(cat("attempt", env.restart));
  // Else a rank of another job with the same port would be taken for ours, and both would hang.
  if (out.store->add(cat("claim/rank", env.rank), 1) > 1) {
    throw DistError("rank ", env.rank, " of this run has already reported at ", env.master_host,
                    ":", port,
                    ": another job has the same MASTER_ADDR and MASTER_PORT (give each its ",
                    "own port), or this rank was started again without the others (start all)");
  }
  return out;
}

Ranks local_ranks(const DistConfig& config) {
  Ranks out;
  out.topology = make_topology(config, 0, 1, 1);
  out.control = out.world = out.gather = out.reduce = out.replica = make_local_group();
  out.expert_gather = out.expert_reduce = out.expert_replica = out.exchange = out.world;
  return out;
}

Ranks place_rank(const LaunchEnv& env, const DistConfig& config, std::shared_ptr<Store> store) {
  Ranks out;
  out.env = env;
  out.topology = make_topology(config, env.rank, env.world, env.local_world);
  out.store = std::move(store);
  return out;
}

void connect_groups(Ranks& out, const RankSettings& settings) {
  const Topology& t = out.topology;

  const auto connect = [&](const std::string& name, int rank, int size,
                           bool nccl) -> std::shared_ptr<ProcessGroup> {
    if (size == 1) return make_local_group();
    GroupSettings group;
    group.name = name;
    group.rank = rank;
    group.size = size;
    group.timeout_s = settings.timeout_s;
    group.log = out.log.get();
    return nccl ? make_nccl_group(out.store, group, settings.device)
                : make_gloo_group(out.store, group, settings.address);
  };
  out.control = connect("control", t.rank, t.world, false);
  out.world = connect("world", t.rank, t.world, settings.nccl);
  const std::string shard = cat(t.replica_rank());
  out.gather = connect("gather." + shard, t.shard_rank(), t.shard_size, settings.nccl);
  out.reduce = connect("reduce." + shard, t.shard_rank(), t.shard_size, settings.nccl);
  // Where the groups would be the same ranks, the world's communicator serves.
  out.replica = t.shard_size == 1 ? out.world
                                  : connect(cat("replica.", t.shard_rank()), t.replica_rank(),
                                            t.replicas, settings.nccl);
  const Topology e = t.of_experts();
  const auto of_experts = [&](const char* name, int which, int rank, int size) {
    const int own = t.expert_ranks == 1 ? 1 : size;  // nothing is dealt: nobody asks
    return connect(cat(name, ".", t.expert_rank(), ".", which), rank, own, settings.nccl);
  };
  out.expert_world = of_experts("expert_world", 0, e.rank, e.world);
  out.expert_gather = of_experts("expert_gather", e.replica_rank(), e.shard_rank(), e.shard_size);
  out.expert_reduce = of_experts("expert_reduce", e.replica_rank(), e.shard_rank(), e.shard_size);
  out.expert_replica = e.shard_size == 1 ? out.expert_world
                                         : of_experts("expert_replica", e.shard_rank(),
                                                      e.replica_rank(), e.replicas);
  out.exchange =
      connect(cat("exchange.", t.expert_group()), t.expert_rank(), t.expert_ranks, settings.nccl);
}

std::vector<ProcessGroup*> Ranks::groups() const {
  return {exchange.get(),      expert_world.get(), expert_replica.get(), expert_reduce.get(),
          expert_gather.get(), replica.get(),      reduce.get(),         gather.get(),
          world.get(),         control.get()};
}

void Ranks::shutdown() {
  for (ProcessGroup* group : groups()) {
    if (group) group->shutdown();
  }
}

void Ranks::abort() {
  for (ProcessGroup* group : groups()) {
    if (group) group->abort();
  }
}

}  // namespace mgm
