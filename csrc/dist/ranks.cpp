#include "dist/ranks.h"

#include <csignal>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "dist/c10d_group.h"
#include "dist/rank_groups.h"

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
  out.expert_world = out.expert_gather = out.expert_reduce = out.expert_replica = out.world;
  out.exchange = out.world;
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
  const RankGroups groups(out.topology);
  const auto connect = [&](const GroupPlace& place, bool nccl) -> std::shared_ptr<ProcessGroup> {
    if (place.size == 1) return make_local_group();
    GroupSettings group;
    group.place = place;
    group.timeout_s = settings.timeout_s;
    group.log = out.log.get();
    // Whoever does not come to connect is waited for as in a collective.
    CollectiveRecord record;
    record.sequence = kConnectNumber;
    record.group = record.label = place.name;
    record.operation = kConnect;
    const uint64_t ticket = out.log->enter(std::move(record));
    std::shared_ptr<ProcessGroup> made = nccl ? make_nccl_group(out.store, group, settings.device)
                                              : make_gloo_group(out.store, group, settings.address);
    out.log->leave(ticket);
    return made;
  };
  const auto on_device = [&](const GroupPlace& place) { return connect(place, settings.nccl); };
  // Where a group would be the same ranks as one that is there, that one's communicator serves.
  const auto or_that = [&](const GroupPlace& place, const std::shared_ptr<ProcessGroup>& there) {
    return place.name == there->name() ? there : on_device(place);
  };
  out.control = connect(groups.control, /*nccl=*/false);
  out.world = on_device(groups.world);
  out.gather = on_device(groups.gather);
  out.reduce = on_device(groups.reduce);
  out.replica = or_that(groups.replica, out.world);
  out.expert_world = on_device(groups.expert_world);
  out.expert_gather = on_device(groups.expert_gather);
  out.expert_reduce = on_device(groups.expert_reduce);
  out.expert_replica = or_that(groups.expert_replica, out.expert_world);
  out.exchange = on_device(groups.exchange);
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

// All at the same time: a communicator gives its memory back when the device stands still, and
// there a collective of another may wait for a rank that is gone until that one is aborted too.
void Ranks::abort() {
  std::set<ProcessGroup*> each;  // some serve as two
  for (ProcessGroup* group : groups()) {
    if (group) each.insert(group);
  }
  std::vector<std::thread> threads;
  for (ProcessGroup* group : each) {
    threads.emplace_back([group] {
      try {
        group->abort();
      } catch (const std::exception& e) {
        log::debug(cat("abort of group ", group->name(), ": ", e.what()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace mgm
