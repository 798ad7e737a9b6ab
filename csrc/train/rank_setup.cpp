#include "train/rank_setup.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>

#include "base/error.h"
#include "launch/host_address.h"

namespace mgm {
namespace {

bool use_nccl(const DistConfig& config, const DeviceSetup& device) {
  const bool cuda = device.device.is_cuda();
  if (config.backend == DistBackend::kNccl && !cuda) {
    throw ConfigError("dist.backend: nccl moves CUDA tensors, but this run is on the CPU");
  }
  if (config.backend == DistBackend::kGloo && cuda) {
    throw ConfigError("dist.backend: gloo moves CPU tensors, but this run is on CUDA");
  }
  return cuda;
}

// Gathered blocks come and go by the dozen in a step. glibc takes those below a threshold, which
// it raises to 32 MiB by itself, from its heap, where whatever else is allocated meanwhile settles
// in the holes they leave: ranks of zero3 came to hold more than the whole model. From 1 MiB on
// they are mapped, and given back.
void map_large_blocks() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

}  // namespace

DeviceSetup setup_device(const RunConfig& config, const LaunchEnv& env) {
  TrainConfig train = config.train;
  if (config.dist.reduction == Reduction::kStrict) {
    train.deterministic = true;
    train.threads = 1;  // sums of different threads round differently
  }
  return setup_device(train, env.local_rank, env.local_world);
}

Ranks take_place(const RunConfig& config, const Meeting& meeting, const DeviceSetup& device,
                 int run_number) {
  const LaunchEnv& env = meeting.env;
  const DistConfig& dist = config.dist;
  use_nccl(dist, device);  // or says why not
  if (env.world == 1) {
    Ranks alone = local_ranks(dist);
    alone.env = env;  // who started it, and how often
    return alone;
  }
  return place_rank(env, dist, meeting.store->below(cat("run", run_number)));
}

void join(Ranks& ranks, const RunConfig& config, const DeviceSetup& device) {
  if (ranks.size() == 1) return;
  const DistTimeouts& limits = config.dist.timeout_s;
  RankSettings settings;
  settings.nccl = use_nccl(config.dist, device);
  if (!device.device.is_cuda() && ranks.topology.shards_parameters()) map_large_blocks();
  settings.device = device.device.index();
  // The outer net, behind the limits of each phase.
  settings.timeout_s = 2 * std::max({limits.start, limits.step, limits.save});
  settings.address =
      address_towards(ranks.env.master_host, ranks.env.master_port, ranks.env.nodes > 1);
  connect_groups(ranks, settings);
}

}  // namespace mgm
