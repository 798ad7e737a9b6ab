#include "launch/coordinator.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "base/hash.h"
#include "base/strings.h"

namespace mgm {
namespace {

constexpr int kPollMs = 200;

Json to_json(const RankFailure& f) {
  return {{"rank", f.rank},
          {"local_rank", f.local_rank},
          {"node", f.node},
          {"host", f.host},
          {"pid", f.pid},
          {"exit_code", f.end.exit_code},
          {"signal", f.end.signal},
          {"after_s", f.after_s},
          {"last_lines", f.last_lines}};
}

RankFailure failure_from_json(const Json& json) {
  RankFailure f;
  f.rank = json.at("rank");
  f.local_rank = json.at("local_rank");
  f.node = json.at("node");
  f.host = json.at("host");
  f.pid = json.at("pid");
  f.end.exit_code = json.at("exit_code");
  f.end.signal = json.at("signal");
  f.after_s = json.at("after_s");
  f.last_lines = json.at("last_lines").get<std::vector<std::string>>();
  return f;
}

}  // namespace

Json to_json(const GroupOutcome& outcome) {
  Json out = {{"stopped_code", outcome.stopped_code}, {"stop_asked", outcome.stop_asked}};
  if (outcome.failure) out["failure"] = to_json(*outcome.failure);
  return out;
}

GroupOutcome outcome_from_json(const Json& json) {
  GroupOutcome out;
  out.stopped_code = json.at("stopped_code");
  out.stop_asked = json.at("stop_asked");
  if (json.contains("failure")) out.failure = failure_from_json(json.at("failure"));
  return out;
}

Json to_json(const Verdict& verdict) {
  Json out = {{"restart", verdict.restart}, {"code", verdict.code}, {"text", verdict.text}};
  if (verdict.cause) out["cause"] = to_json(*verdict.cause);
  return out;
}

Verdict verdict_from_json(const Json& json) {
  Verdict out;
  out.restart = json.at("restart");
  out.code = json.at("code");
  out.text = json.at("text");
  if (json.contains("cause")) out.cause = failure_from_json(json.at("cause"));
  return out;
}

std::string make_run_id() {
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  return "launch-" + hex64(hash64(cat(this_host(), " ", ::getpid(), " ", now)));
}

LaunchCoordinator::LaunchCoordinator(const CoordinatorOptions& options)
    : options_(options),
      listener_(listen_on(options.port)),
      nodes_(static_cast<size_t>(options.nodes)),
      run_id_(make_run_id()),
      thread_([this] { serve(); }) {}

LaunchCoordinator::~LaunchCoordinator() {
  stop_ = true;
  thread_.join();
  ::close(listener_);
}

void LaunchCoordinator::serve() {
  while (!finished_ && !stop_) {
    wait_for_messages();
    if (const int fd = accept_from(listener_); fd >= 0) connections_.push_back({JsonSocket(fd)});
    for (Connection& connection : connections_) {
      for (const Json& message : connection.socket.receive()) {
        try {
          if (!finished_) handle(connection, message);
        } catch (const Json::exception&) {
          connection.socket.close();  // none of ours
        }
      }
    }
    for (auto it = connections_.begin(); it != connections_.end();) {
      if (it->socket.closed()) {
        lose(*it);
        it = connections_.erase(it);
      } else {
        ++it;
      }
    }
    if (finished_) return;
    if (running_ && all(State::kEnded, State::kAbsent)) decide();
    if (running_ || finished_) continue;
    if (all(State::kReady, State::kReady)) {
      start_all();
    } else if (gathering_.seconds() > options_.join_timeout_s) {
      std::vector<std::string> absent;
      for (size_t i = 0; i < nodes_.size(); ++i) {
        if (nodes_[i].state != State::kReady) absent.push_back(std::to_string(i));
      }
      Verdict verdict;
      verdict.code = static_cast<int>(ExitCode::kDist);
      verdict.text = cat("no launcher came for node ", join(absent, ", "), " of ", options_.nodes,
                         " within ", human_seconds(options_.join_timeout_s), " (--join-timeout)");
      finish(verdict);
    }
  }
}

void LaunchCoordinator::wait_for_messages() {
  std::vector<pollfd> fds = {{listener_, POLLIN, 0}};
  for (const Connection& connection : connections_) {
    fds.push_back({connection.socket.fd(), POLLIN, 0});
  }
  ::poll(fds.data(), fds.size(), kPollMs);
}

void LaunchCoordinator::handle(Connection& connection, const Json& message) {
  const std::string type = message.at("type");
  if (type == "ready") {
    admit(connection, message);
    return;
  }
  if (connection.node < 0) return;
  Node& node = nodes_[static_cast<size_t>(connection.node)];
  if (type == "failed" && node.state == State::kRunning) {
    broadcast({{"type", "end"}});
  } else if (type == "ended" && node.state == State::kRunning) {
    node.outcome.ranks = outcome_from_json(message.at("outcome"));
    report(node);
    node.state = State::kEnded;
  } else if (type == "leave") {
    Verdict verdict;
    verdict.code = message.at("code");
    verdict.text = cat("stopped on host ", node.outcome.host, " before the ranks were started");
    finish(verdict);
  }
}

void LaunchCoordinator::admit(Connection& connection, const Json& message) {
  const int number = message.at("node"), nodes = message.at("nodes");
  Verdict refusal;
  refusal.code = static_cast<int>(ExitCode::kConfig);
  if (nodes != options_.nodes || number < 0 || number >= nodes) {
    refusal.text = cat("--nnodes is ", nodes, " and --node-rank ", number,
                       " here, but the launcher of node 0 was given --nnodes ", options_.nodes);
    connection.socket.send({{"type", "verdict"}, {"verdict", to_json(refusal)}});
    connection.socket.close();
    return;
  }
  Node& node = nodes_[static_cast<size_t>(number)];
  // A host that came back before its old connection was found dead, or a mistake.
  if (node.connection != nullptr && node.connection != &connection) {
    refusal.text = cat("another launcher has come with --node-rank ", number);
    node.connection->socket.send({{"type", "verdict"}, {"verdict", to_json(refusal)}});
    node.connection->socket.close();
    lose(*node.connection);
  }
  connection.node = number;
  node.connection = &connection;
  node.nproc = message.at("nproc");
  node.outcome = {};
  node.outcome.host = message.at("host");
  // While others still run it waits for their end, as an absent one.
  node.state = running_ ? State::kAbsent : State::kReady;
}

void LaunchCoordinator::lose(Connection& connection) {
  if (connection.node < 0) return;
  Node& node = nodes_[static_cast<size_t>(connection.node)];
  connection.node = -1;
  if (node.connection != &connection) return;
  node.connection = nullptr;
  if (node.state == State::kRunning) {
    node.outcome.lost = true;
    report(node);
    broadcast({{"type", "end"}});
  }
  node.state = State::kAbsent;
}

void LaunchCoordinator::report(Node& node) { reported_.push_back(node.outcome); }

bool LaunchCoordinator::all(State a, State b) const {
  return std::all_of(nodes_.begin(), nodes_.end(),
                     [&](const Node& node) { return node.state == a || node.state == b; });
}

void LaunchCoordinator::start_all() {
  int world = 0;
  for (const Node& node : nodes_) world += node.nproc;
  const int port = free_port();
  int first_rank = 0;
  for (Node& node : nodes_) {
    node.connection->socket.send({{"type", "start"},
                                  {"first_rank", first_rank},
                                  {"world", world},
                                  {"port", port},
                                  {"run_id", run_id_},
                                  {"restart", restart_}});
    node.state = State::kRunning;
    first_rank += node.nproc;
  }
  reported_.clear();
  running_ = true;
}

void LaunchCoordinator::decide() {
  const Verdict verdict = judge(reported_, restart_, options_.restarts);
  if (!verdict.restart) {
    finish(verdict);
    return;
  }
  ++restart_;
  running_ = false;
  gathering_.reset();
  for (Node& node : nodes_) {
    // Who came while the others still ran has said "ready" already.
    const bool waiting = node.state == State::kAbsent && node.connection != nullptr;
    if (node.state == State::kEnded) {
      node.connection->socket.send({{"type", "verdict"}, {"verdict", to_json(verdict)}});
    }
    node.state = waiting ? State::kReady : State::kAbsent;
  }
}

void LaunchCoordinator::finish(const Verdict& verdict) {
  broadcast({{"type", "verdict"}, {"verdict", to_json(verdict)}});
  finished_ = true;
}

void LaunchCoordinator::broadcast(const Json& message) {
  for (Node& node : nodes_) {
    if (node.connection != nullptr) node.connection->socket.send(message);
  }
}

}  // namespace mgm
