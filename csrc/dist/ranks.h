// The ranks of a run as one of them sees them: its place, the store they meet at and the groups
// they communicate through. Groups are separate communicators, so that one kind of traffic never
// waits behind another: gathers of the next block run while gradients of the last one leave.
#pragma once

#include <memory>
#include <string>

#include "dist/collective_log.h"
#include "dist/process_group.h"
#include "dist/store.h"
#include "dist/topology.h"
#include "launch/env.h"

namespace mgm {

struct Ranks {
  Topology topology;
  LaunchEnv env;
  std::shared_ptr<Store> store;  // null when there is one rank
  std::shared_ptr<CollectiveLog> log = std::make_shared<CollectiveLog>();

  // Tensors of the run's device, except `control`: CPU tensors, for counts and agreement.
  std::shared_ptr<ProcessGroup> control;  // all ranks
  std::shared_ptr<ProcessGroup> world;    // all ranks
  std::shared_ptr<ProcessGroup> gather;   // of the shard group: parameters in
  std::shared_ptr<ProcessGroup> reduce;   // of the shard group: gradients out
  std::shared_ptr<ProcessGroup> replica;  // of the replica group: gradients across
  // Of experts that are dealt to several ranks, the same among the ranks that hold the same ones;
  // and of the expert group: rows to experts and back. One rank alone where none are dealt.
  std::shared_ptr<ProcessGroup> expert_world, expert_gather, expert_reduce, expert_replica;
  std::shared_ptr<ProcessGroup> exchange;

  int rank() const { return topology.rank; }
  int size() const { return topology.world; }
  bool is_first() const { return topology.rank == 0; }

  // In good order, or at once.
  void shutdown();
  void abort();

 private:
  std::vector<ProcessGroup*> groups() const;
};

// A process among its ranks: what its launcher told it, and the store they all reach. Made once per
// process; runs one after another use keys of their own.
struct Meeting {
  LaunchEnv env;
  std::shared_ptr<Store> store;  // null when there is one rank
};
// Ignores SIGPIPE from then on. Throws DistError when no store answers within `timeout_s`, or when
// the rank is there already.
Meeting meet(const LaunchEnv& env, double timeout_s);

// One rank: this process; nothing is connected.
Ranks local_ranks(const DistConfig& config);

struct RankSettings {
  bool nccl = false;       // groups for CUDA tensors of `device`; else Gloo, for CPU tensors
  int device = 0;          // CUDA ordinal
  double timeout_s = 600;  // the outer net of every collective
  std::string address = "127.0.0.1";  // that other ranks reach this host by
};

// This rank's place; nothing is connected yet. `store` may be shared by ranks that are threads of
// one process. Throws ConfigError (topology).
Ranks place_rank(const LaunchEnv& env, const DistConfig& config, std::shared_ptr<Store> store);
// Connects all groups; every rank must call it. Throws DistError.
void connect_groups(Ranks& ranks, const RankSettings& settings);

}  // namespace mgm
