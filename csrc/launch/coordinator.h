// The launcher of node 0 serves those of all hosts here: it starts their ranks together, ends all
// when one host reports a failure or is gone, and says what becomes of the launch. A thread of its
// own; it starts no process. Messages are JSON objects with a "type":
//   ready, failed, ended, leave   from a launcher
//   start, end, verdict           to a launcher
#pragma once

#include <atomic>
#include <list>
#include <string>
#include <thread>
#include <vector>

#include "base/timer.h"
#include "launch/json_socket.h"
#include "launch/verdict.h"

namespace mgm {

struct CoordinatorOptions {
  int port = 0;  // that it listens on
  int nodes = 2;
  int restarts = 0;
  double join_timeout_s = 600;  // for all launchers to come, at the start and after a failure
};

class LaunchCoordinator {
 public:
  explicit LaunchCoordinator(const CoordinatorOptions& options);  // throws DistError (the port)
  ~LaunchCoordinator();
  LaunchCoordinator(const LaunchCoordinator&) = delete;
  LaunchCoordinator& operator=(const LaunchCoordinator&) = delete;

 private:
  enum class State { kAbsent, kReady, kRunning, kEnded };
  struct Connection {
    JsonSocket socket;
    int node = -1;  // until it has said which
  };
  struct Node {
    State state = State::kAbsent;
    Connection* connection = nullptr;
    int nproc = 0;
    HostOutcome outcome;
  };

  void serve();
  void wait_for_messages();
  void handle(Connection& connection, const Json& message);
  void admit(Connection& connection, const Json& message);
  void lose(Connection& connection);
  void report(Node& node);
  void start_all();
  void decide();
  void finish(const Verdict& verdict);
  void broadcast(const Json& message);
  bool all(State a, State b) const;

  CoordinatorOptions options_;
  int listener_ = -1;
  std::list<Connection> connections_;
  std::vector<Node> nodes_;
  std::vector<HostOutcome> reported_;  // of this start, in the order they came
  std::string run_id_;
  bool running_ = false, finished_ = false;
  int restart_ = 0;
  Timer gathering_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// How outcomes and verdicts travel.
Json to_json(const GroupOutcome& outcome);
GroupOutcome outcome_from_json(const Json& json);
Json to_json(const Verdict& verdict);
Verdict verdict_from_json(const Json& json);

// An id that no other launch has.
std::string make_run_id();

}  // namespace mgm
