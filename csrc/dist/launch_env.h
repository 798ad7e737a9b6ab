// Who started this process and which rank it is: torchrun, SLURM, Open MPI, Kubernetes or
// `mgm launch`, read from environment variables once.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace mgm {

struct LaunchEnv {
  std::string launcher = "none";  // "torchrun", "slurm", "openmpi", "kubernetes", "none"
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;  // among the ranks of this host
  int node = 0, nodes = 1;
  std::string master_host = "127.0.0.1";
  int master_port = 29500;
  bool store_is_served = false;  // the launcher serves the store; no rank does
  int restart = 0;               // how often the launcher has started this job again
  std::string job;               // id that all ranks share, if the launcher gives one
};

// Value of an environment variable, or nothing.
using EnvLookup = std::function<std::optional<std::string>(const std::string&)>;

// Throws DistError naming the variable that is missing, malformed or contradicts another.
LaunchEnv read_launch_env(const EnvLookup& lookup);
LaunchEnv read_launch_env();  // of this process

}  // namespace mgm
