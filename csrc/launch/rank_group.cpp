#include "launch/rank_group.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <deque>

#include "base/error.h"
#include "base/timer.h"
#include "launch/line_cutter.h"

namespace mgm {
namespace {

constexpr size_t kLastLines = 12;
// The cause has this long to show after the first failure: its rank may be slower to end.
constexpr double kEchoSeconds = 3;

struct Rank {
  int rank = 0, local_rank = 0;
  ChildProcess child;
  bool running = true;
  std::deque<std::string> last_lines;
  std::unique_ptr<LineCutter> out, err;
};

class RankGroup {
 public:
  RankGroup(const RankGroupOptions& options, const Placement& placement, SignalPipe& signals,
            const GroupNews& news)
      : options_(options), placement_(placement), signals_(signals), news_(news) {}

  ~RankGroup() {  // an exception: none may stay
    for (Rank& rank : ranks_) {
      if (!rank.running) continue;
      signal_child(rank.child.pid, SIGKILL);
      ChildEnd end;
      while (!reap_child(rank.child.pid, end)) ::usleep(1000);
      close_pipes(rank);
    }
  }
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  GroupOutcome run() {
    for (int i = 0; i < options_.nproc; ++i) start(i);
    while (running() > 0) {
      wait_for_news();
      for (const int signal : signals_.take()) pass_on(signal);
      for (Rank& rank : ranks_) pump(rank);
      for (Rank& rank : ranks_) reap(rank);
      if (ending_ && !killed_ && timer_.seconds() >= kill_at_s_) kill();
    }
    return outcome_;
  }

 private:
  int64_t running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const Rank& r) { return r.running; });
  }

  void start(int local_rank) {
    Rank& rank = ranks_.emplace_back();
    rank.local_rank = local_rank;
    rank.rank = placement_.first_rank + local_rank;
    rank.running = false;  // until it is
    rank.child = start_child(options_.command, environment(local_rank));
    rank.running = true;
    for (const int fd : {1, 2}) {
      (fd == 1 ? rank.out : rank.err) =
          std::make_unique<LineCutter>([this, r = &rank, fd](std::string_view line) {
            if (r->last_lines.size() == kLastLines) r->last_lines.pop_front();
            r->last_lines.emplace_back(line);
            options_.write(fd, cat("[", r->rank, "] ", line, "\n"));
          });
    }
  }

  std::vector<std::string> environment(int local_rank) const {
    std::vector<std::string> out = options_.environment;
    const Placement& p = placement_;
    for (const std::string& setting :
         {cat("RANK=", p.first_rank + local_rank), cat("WORLD_SIZE=", p.world),
          cat("LOCAL_RANK=", local_rank), cat("LOCAL_WORLD_SIZE=", options_.nproc),
          cat("GROUP_RANK=", p.node), cat("GROUP_WORLD_SIZE=", p.nodes),
          cat("MASTER_ADDR=", p.master_host), cat("MASTER_PORT=", p.master_port),
          cat("TORCHELASTIC_RESTART_COUNT=", p.restart),
          cat("TORCHELASTIC_MAX_RESTARTS=", p.restarts), cat("TORCHELASTIC_RUN_ID=", p.run_id),
          std::string("MGM_LAUNCH=1")}) {
      out.push_back(setting);
    }
    return out;
  }

  void wait_for_news() {
    std::vector<pollfd> fds = {{signals_.fd(), POLLIN, 0}};
    if (news_.fd >= 0 && !ending_) fds.push_back({news_.fd, POLLIN, 0});
    for (const Rank& rank : ranks_) {
      for (const int fd : {rank.child.out, rank.child.err}) {
        if (fd >= 0) fds.push_back({fd, POLLIN, 0});
      }
    }
    const int wait_ms = ending_ && !killed_ ? 50 : 500;
    ::poll(fds.data(), fds.size(), wait_ms);
    if (news_.fd >= 0 && !ending_ && (fds[1].revents != 0) && news_.must_end()) end_all("");
  }

  void pass_on(int signal) {
    outcome_.stop_asked = true;
    const int passed = signal == SIGHUP ? SIGTERM : signal;
    passed_.push_back(passed);
    options_.write(
        2, cat("launch: ", signal_name(signal), " came; passed on to ", running(), " ranks\n"));
    for (const Rank& rank : ranks_) {
      if (rank.running) signal_child(rank.child.pid, passed);
    }
  }

  void pump(Rank& rank) {
    for (const bool is_out : {true, false}) {
      int& fd = is_out ? rank.child.out : rank.child.err;
      LineCutter& cutter = is_out ? *rank.out : *rank.err;
      char bytes[65536];
      while (fd >= 0) {
        const ssize_t got = ::read(fd, bytes, sizeof bytes);
        if (got > 0) {
          cutter.feed({bytes, static_cast<size_t>(got)}, timer_.seconds());
        } else if (got == 0) {
          ::close(fd);
          fd = -1;
        } else if (errno != EINTR) {
          break;
        }
      }
      cutter.tick(timer_.seconds());
    }
  }

  static void close_pipes(Rank& rank) {
    for (int* fd : {&rank.child.out, &rank.child.err}) {
      if (*fd >= 0) ::close(*fd);
      *fd = -1;
    }
  }

  void reap(Rank& rank) {
    ChildEnd end;
    if (!rank.running || !reap_child(rank.child.pid, end)) return;
    rank.running = false;
    pump(rank);  // what it wrote last
    rank.out->finish();
    rank.err->finish();
    close_pipes(rank);
    if (end.exit_code == 0) return;
    if (is_stop(end)) {
      if (outcome_.stopped_code == 0) outcome_.stopped_code = end.shell_code();
      // Ranks stop together, so that the others are saving too: they are not asked again, but one
      // that does not follow within the grace is not going to.
      if (passed_.empty()) start_ending();
      return;
    }
    if (!is_our_doing(end)) note_failure(rank, end);
  }

  // As a signal asked: after a save, or before the rank could catch it.
  bool is_stop(const ChildEnd& end) const {
    for (const ExitCode code : {ExitCode::kSigterm, ExitCode::kSigint, ExitCode::kSigusr1}) {
      if (end.exit_code == static_cast<int>(code)) return true;
    }
    return end.signal != 0 &&
           std::find(passed_.begin(), passed_.end(), end.signal) != passed_.end();
  }
  bool is_our_doing(const ChildEnd& end) const {
    return ending_ && (end.signal == SIGTERM || (killed_ && end.signal == SIGKILL));
  }

  void note_failure(const Rank& rank, const ChildEnd& end) {
    RankFailure failure;
    failure.rank = rank.rank;
    failure.local_rank = rank.local_rank;
    failure.node = placement_.node;
    failure.host = this_host();
    failure.pid = rank.child.pid;
    failure.end = end;
    failure.after_s = timer_.seconds();
    failure.last_lines.assign(rank.last_lines.begin(), rank.last_lines.end());
    if (!outcome_.failure) {
      outcome_.failure = failure;
      if (news_.on_failure) news_.on_failure(failure);
      end_all(failure.sentence());
    } else if (failure.tells_more_than(*outcome_.failure) &&
               failure.after_s - outcome_.failure->after_s < kEchoSeconds) {
      outcome_.failure = failure;
    }
  }

  void start_ending() {
    if (ending_) return;
    ending_ = true;
    kill_at_s_ = timer_.seconds() + options_.grace_s;
  }

  void end_all(const std::string& because) {
    if (ending_) return;
    start_ending();
    if (running() == 0) return;
    if (!because.empty()) {
      options_.write(2, cat("launch: ", because, "; ending the other ", running(), " ranks of ",
                            this_host(), "\n"));
    }
    // A second SIGTERM would cut a save short.
    if (std::find(passed_.begin(), passed_.end(), SIGTERM) != passed_.end()) return;
    for (const Rank& rank : ranks_) {
      if (rank.running) signal_child(rank.child.pid, SIGTERM);
    }
  }

  void kill() {
    killed_ = true;
    options_.write(2, cat("launch: ", running(), " ranks did not end within ",
                          human_seconds(options_.grace_s), " (--grace); killing them\n"));
    for (const Rank& rank : ranks_) {
      if (rank.running) signal_child(rank.child.pid, SIGKILL);
    }
  }

  const RankGroupOptions& options_;
  const Placement& placement_;
  SignalPipe& signals_;
  const GroupNews& news_;
  std::deque<Rank> ranks_;  // stays where it is
  Timer timer_;
  GroupOutcome outcome_;
  std::vector<int> passed_;  // signals
  bool ending_ = false, killed_ = false;
  double kill_at_s_ = 0;
};

const char* meaning(int exit_code) {
  switch (exit_code) {
    case 2:
      return " (config)";
    case 3:
      return " (data)";
    case 4:
      return " (checkpoint or weights)";
    case 5:
      return " (ranks)";
    case 6:
      return " (loss not finite)";
    default:
      return "";
  }
}

}  // namespace

std::string RankFailure::sentence() const {
  std::string how = end.signal != 0
                        ? cat("was killed by ", signal_name(end.signal),
                              end.signal == SIGKILL ? " (out of memory?)" : "")
                        : cat("ended with exit code ", end.exit_code, meaning(end.exit_code));
  return cat("rank ", rank, " (local rank ", local_rank, " of host ", host, ", pid ", pid, ") ",
             how, " after ", human_seconds(after_s));
}

GroupOutcome run_rank_group(const RankGroupOptions& options, const Placement& placement,
                            SignalPipe& signals, const GroupNews& news) {
  return RankGroup(options, placement, signals, news).run();
}

std::string this_host() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

}  // namespace mgm
