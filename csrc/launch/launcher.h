// `mgm launch`: N ranks of one command on this host (and as many launchers on others), their output
// behind "[rank] ", ended together when one fails, and started again when that may help. Sets
// torchrun's variables (rank_group.cpp), OMP_NUM_THREADS unless it is set, and MGM_LAUNCH.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace mgm {

struct LaunchPlan {
  std::vector<std::string> command;      // what a rank runs; command[0] is a path
  std::vector<std::string> environment;  // "NAME=value", all of it; usually this process's own
  int nproc = 1;
  // After a rank of this host failed twice, the next smaller divisor of nproc is used that is not
  // below this, without that rank's GPU. 0: nproc, never fewer.
  int min_nproc = 0;
  int restarts = 0;            // after a signal or exit code 1 or 5
  double restart_delay_s = 1;  // before each
  double grace_s = 30;         // between SIGTERM and SIGKILL
  int nodes = 1, node = 0;
  std::string master;  // HOST:PORT of node 0's launcher; needed when nodes > 1
  double join_timeout_s = 600;
  // Shows whole lines; 1: output, 2: errors.
  std::function<void(int fd, std::string_view text)> write;
};

// Returns the exit code: 0, the first failing rank's (128 + n: killed by signal n), or 143 /
// 130 / 138 when the ranks stopped as a signal asked. Throws ConfigError (the plan), DistError (the
// port of
// --master), InternalError (the command cannot be run).
int run_launch(const LaunchPlan& plan);

// Cores that this process may use.
int usable_cores();

// This process's, "NAME=value".
std::vector<std::string> own_environment();

}  // namespace mgm
