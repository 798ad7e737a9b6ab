// What the launcher of one host knows of the others: when all are ready, that ranks elsewhere have
// failed, and what becomes of the launch. One host alone decides for itself; of several, the
// launcher of node 0 also serves a LaunchCoordinator, which each of them, it too, talks to.
#pragma once

#include <memory>
#include <string>
#include <variant>

#include "launch/signal_pipe.h"
#include "launch/verdict.h"

namespace mgm {

struct HostsOptions {
  int nodes = 1, node = 0;
  std::string master_host;  // of node 0; nothing is needed when it is the only one
  int master_port = 0;
  int restarts = 0;
  double join_timeout_s = 600;
};

class LaunchHosts {
 public:
  virtual ~LaunchHosts() = default;
  // Waits until every host is ready to start its ranks, `nproc` of them here. Instead of a place it
  // may return how the launch ended: a signal came, or a host did not.
  virtual std::variant<Placement, Verdict> begin(int nproc) = 0;
  // For the time in which the ranks run.
  virtual GroupNews news() = 0;
  // The ranks of this host have ended; waits for those of the others.
  virtual Verdict end(const GroupOutcome& outcome) = 0;
};

// Throws DistError when node 0 cannot listen on its port.
std::unique_ptr<LaunchHosts> make_launch_hosts(const HostsOptions& options, SignalPipe& signals);

}  // namespace mgm
