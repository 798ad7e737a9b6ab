// Who started this process and which rank it is: torchrun, `mgm launch`, SLURM, Open MPI or
// Kubernetes, read from environment variables once (docs/cluster.md lists them). Ranks are numbered
// host by host: those of one host are consecutive. A process that nothing started as one of several
// is one rank: an allocation's shell and an sbatch script without srun are such.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace mgm {

struct LaunchEnv {
  // "torchrun", "mgm launch", "slurm", "openmpi", "kubernetes", "none"
  std::string launcher = "none";
  int rank = 0, world = 1;
  int local_rank = 0, local_world = 1;  // among the ranks of this host
  int node = 0, nodes = 1;
  std::string master_host = "127.0.0.1";
  int master_port = 29500;
  bool store_is_served = false;  // the launcher serves the store; no rank does
  int restart = 0;               // how often the launcher has started this job again
  std::string job;               // id that all ranks share, if the launcher gives one
  std::string allocation;        // the SLURM job this runs in, whatever started it there; mostly ""
  int requeues = 0;              // how often SLURM has begun that job again
  std::string note;              // what the user should know about how this was started; mostly ""
};

// Value of an environment variable, or nothing.
using EnvLookup = std::function<std::optional<std::string>(const std::string&)>;

// Throws DistError naming the variable that is missing, malformed or contradicts another. A
// variable that is set to nothing counts as not set.
LaunchEnv read_launch_env(const EnvLookup& lookup);
LaunchEnv read_launch_env();  // of this process

}  // namespace mgm
