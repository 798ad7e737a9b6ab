// What becomes of a launch when the ranks of every host have ended: done, stopped, started again or
// failed, and why.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/rank_group.h"

namespace mgm {

struct HostOutcome {
  std::string host;
  bool lost = false;  // its launcher is gone
  GroupOutcome ranks;
};

struct Verdict {
  bool restart = false;
  int code = 0;      // exit code of the launch, unless it restarts
  std::string text;  // for the user; "" when all is well
  std::optional<RankFailure> cause;
};

// `restart`: how often the ranks were started again before; `restarts`: how often they may be. The
// cause is the first failure (hosts in the order in which they reported; one that wrote something
// before silent ones) that is not an echo, else a lost host, else an echo. Started again is only
// what may pass, and never after a signal to stop.
Verdict judge(const std::vector<HostOutcome>& outcomes, int restart, int restarts);

}  // namespace mgm
