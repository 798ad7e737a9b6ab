// The ranks that `mgm launch` runs on one host, from their start until the last one has ended: it
// shows their output line by line with a "[rank] " before each, passes signals on, and when one
// fails ends the others (SIGTERM, then SIGKILL after the grace). One thread, one poll loop.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/child_process.h"
#include "launch/signal_pipe.h"

namespace mgm {

// Where the ranks of this host stand among all; host by host.
struct Placement {
  int first_rank = 0, world = 1;
  int node = 0, nodes = 1;
  std::string master_host = "127.0.0.1";
  int master_port = 0;
  std::string run_id;
  int restart = 0, restarts = 0;  // this one's number; how many are allowed
};

struct RankFailure {
  int rank = 0, local_rank = 0, node = 0;
  std::string host;
  int pid = 0;
  ChildEnd end;
  double after_s = 0;
  std::vector<std::string> last_lines;

  // Exit code 5 mostly says that another rank is gone: the cause is elsewhere, if it is known.
  bool is_echo() const { return end.exit_code == 5; }
  // A signal, exit code 1 or 5: may pass. Config, data, weights, NaN: it would fail again.
  bool may_pass() const { return end.signal != 0 || end.exit_code == 1 || end.exit_code == 5; }
  // Whether this tells more of the cause: no echo before an echo, then words before silence.
  bool tells_more_than(const RankFailure& other) const {
    if (is_echo() != other.is_echo()) return !is_echo();
    return !last_lines.empty() && other.last_lines.empty();
  }
  // "rank 3 (local rank 1 of host gpu2, pid 77) was killed by SIGKILL after 1m02s", and more.
  std::string sentence() const;
};

// How the ranks of one host ended.
struct GroupOutcome {
  std::optional<RankFailure> failure;  // the first one, unless one soon after it tells more
  int stopped_code = 0;     // 143, 130: ended as a signal asked, nothing failed; 0: they completed
  bool stop_asked = false;  // a signal came to this launcher
};

struct RankGroupOptions {
  std::vector<std::string> command;      // of every rank; command[0] is a path
  std::vector<std::string> environment;  // common to all ranks; torchrun's variables come on top
  int nproc = 1;
  double grace_s = 30;                                       // between SIGTERM and SIGKILL
  std::function<void(int fd, std::string_view text)> write;  // 1: output, 2: errors
};

// A file that other hosts' news come through while the ranks run.
struct GroupNews {
  int fd = -1;
  std::function<bool()> must_end;                      // reads fd; true: end the ranks
  std::function<void(const RankFailure&)> on_failure;  // at once, before the group has ended
};

// Returns when every rank has ended. Throws InternalError when the command cannot be run.
GroupOutcome run_rank_group(const RankGroupOptions& options, const Placement& placement,
                            SignalPipe& signals, const GroupNews& news);

std::string this_host();  // its name

}  // namespace mgm
