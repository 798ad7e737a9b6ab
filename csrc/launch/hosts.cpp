#include "launch/hosts.h"

#include <poll.h>

#include <csignal>
#include <optional>

#include "base/error.h"
#include "base/timer.h"
#include "launch/coordinator.h"
#include "launch/json_socket.h"

namespace mgm {
namespace {

class OneHost : public LaunchHosts {
 public:
  explicit OneHost(const HostsOptions& options)
      : restarts_(options.restarts), run_id_(make_run_id()) {}

  std::variant<Placement, Verdict> begin(int nproc) override {
    Placement p;
    p.world = nproc;
    p.master_port = free_port();
    p.run_id = run_id_;
    p.restart = restart_;
    p.restarts = restarts_;
    return p;
  }

  GroupNews news() override { return {}; }

  Verdict end(const GroupOutcome& outcome) override {
    return judge({{this_host(), false, outcome}}, restart_++, restarts_);
  }

 private:
  int restarts_, restart_ = 0;
  std::string run_id_;
};

class ManyHosts : public LaunchHosts {
 public:
  ManyHosts(const HostsOptions& options, SignalPipe& signals)
      : options_(options), signals_(signals) {
    if (options.node == 0) {
      coordinator_ = std::make_unique<LaunchCoordinator>(CoordinatorOptions{
          options.master_port, options.nodes, options.restarts, options.join_timeout_s});
    }
  }

  std::variant<Placement, Verdict> begin(int nproc) override {
    const Timer timer;
    while (socket_.closed()) {
      const int fd =
          connect_to(options_.node == 0 ? "127.0.0.1" : options_.master_host, options_.master_port);
      if (fd >= 0) {
        socket_ = JsonSocket(fd);
      } else if (timer.seconds() > options_.join_timeout_s) {
        return failed(cat("the launcher of node 0 cannot be reached at ", options_.master_host, ":",
                          options_.master_port,
                          " (--master); is it running, is the name right, "
                          "and may this host connect to that port?"));
      } else if (const int code = stop_code(wait(500))) {
        return stopped(code);
      }
    }
    socket_.send({{"type", "ready"},
                  {"node", options_.node},
                  {"nodes", options_.nodes},
                  {"nproc", nproc},
                  {"host", this_host()}});
    while (true) {
      const std::vector<int> signals = wait(60000);
      if (const int code = stop_code(signals)) {
        socket_.send({{"type", "leave"}, {"code", code}});
        return stopped(code);
      }
      for (const Json& message : socket_.receive()) {
        if (message.value("type", "") == "start") return placement(message);
        if (message.value("type", "") == "verdict") return verdict_from_json(message.at("verdict"));
      }
      if (socket_.closed()) return failed(gone());
    }
  }

  GroupNews news() override {
    return {socket_.fd(), [this] { return must_end(); },
            [this](const RankFailure&) { socket_.send({{"type", "failed"}}); }};
  }

  Verdict end(const GroupOutcome& outcome) override {
    if (!socket_.closed() && !early_) {
      socket_.send({{"type", "ended"}, {"outcome", to_json(outcome)}});
    }
    while (!early_ && !socket_.closed()) {
      if (const int code = stop_code(wait(60000))) return stopped(code);
      must_end();
    }
    if (early_) {
      const Verdict verdict = *early_;
      early_.reset();
      return verdict;
    }
    // What happened here is all that is known.
    Verdict own = judge({{this_host(), false, outcome}}, 0, 0);
    return own.code != 0 ? own : failed(gone());
  }

 private:
  // Up to `wait_ms` for a message or a signal.
  std::vector<int> wait(int wait_ms) {
    pollfd fds[2] = {{signals_.fd(), POLLIN, 0}, {socket_.fd(), POLLIN, 0}};
    ::poll(fds, socket_.closed() ? 1 : 2, wait_ms);
    return signals_.take();
  }

  static int stop_code(const std::vector<int>& signals) {
    return signals.empty() ? 0 : 128 + (signals[0] == SIGHUP ? SIGTERM : signals[0]);
  }
  static Verdict stopped(int code) { return {false, code, "", std::nullopt}; }
  static Verdict failed(const std::string& text) {
    return {false, static_cast<int>(ExitCode::kDist), text, std::nullopt};
  }
  std::string gone() const {
    return cat("the launcher of node 0 (", options_.master_host, ":", options_.master_port,
               ") is gone");
  }

  bool must_end() {
    bool end = false;
    for (const Json& message : socket_.receive()) {
      const std::string type = message.value("type", "");
      if (type == "verdict") early_ = verdict_from_json(message.at("verdict"));
      end = end || type == "verdict" || type == "end";
    }
    return end || socket_.closed();
  }

  Placement placement(const Json& message) const {
    Placement p;
    p.first_rank = message.at("first_rank");
    p.world = message.at("world");
    p.node = options_.node;
    p.nodes = options_.nodes;
    p.master_host = options_.master_host;
    p.master_port = message.at("port");
    p.run_id = message.at("run_id");
    p.restart = message.at("restart");
    p.restarts = options_.restarts;
    return p;
  }

  HostsOptions options_;
  SignalPipe& signals_;
  std::unique_ptr<LaunchCoordinator> coordinator_;
  JsonSocket socket_{-1};
  std::optional<Verdict> early_;  // that came while the ranks ran or ended
};

}  // namespace

std::unique_ptr<LaunchHosts> make_launch_hosts(const HostsOptions& options, SignalPipe& signals) {
  if (options.nodes == 1) return std::make_unique<OneHost>(options);
  return std::make_unique<ManyHosts>(options, signals);
}

}  // namespace mgm
