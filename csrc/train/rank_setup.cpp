#include "train/rank_setup.h"

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
  settings.device = device.device.index();
  // The outer net, behind the limits of each phase.
  settings.timeout_s = 2 * std::max({limits.start, limits.step, limits.save});
  settings.address =
      address_towards(ranks.env.master_host, ranks.env.master_port, ranks.env.nodes > 1);
  connect_groups(ranks, settings);
}

}  // namespace mgm
