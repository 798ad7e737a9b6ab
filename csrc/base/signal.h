// The stop flag: SIGTERM, SIGINT and SIGUSR1 (what schedulers warn of preemption with) ask for a
// clean save and exit; a second signal ends at once, unless the first was SIGUSR1. The same signal
// again within a second is no second one.
#pragma once

namespace mgm {

// Installs the handlers for its lifetime and restores the old ones.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
};

int stop_signal();         // 0, or the signal that asked to stop
void clear_stop_signal();  // for tests

}  // namespace mgm
