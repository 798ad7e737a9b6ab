#include "launch/launcher.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <numeric>
#include <optional>
#include <variant>

#include "base/error.h"
#include "base/timer.h"
#include "launch/hosts.h"

namespace mgm {
namespace {

constexpr int kMostRanks =
    1024;  // of a host: more is a slip of the finger, and would bring it down

// A rank that has failed this often is left out, where --min-nproc allows it.
constexpr int kFailuresOfABadSlot = 2;

// Variables of the ranks that must not come from outside.
constexpr const char* kOurs[] = {"RANK",
                                 "WORLD_SIZE",
                                 "LOCAL_RANK",
                                 "LOCAL_WORLD_SIZE",
                                 "GROUP_RANK",
                                 "GROUP_WORLD_SIZE",
                                 "MASTER_ADDR",
                                 "MASTER_PORT",
                                 "TORCHELASTIC_RESTART_COUNT",
                                 "TORCHELASTIC_MAX_RESTARTS",
                                 "TORCHELASTIC_RUN_ID",
                                 "TORCHELASTIC_USE_AGENT_STORE",
                                 "MGM_LAUNCH"};

bool sets(const std::string& setting, std::string_view name) {
  return setting.size() > name.size() && setting.compare(0, name.size(), name) == 0 &&
         setting[name.size()] == '=';
}

std::optional<std::string> value_of(const std::vector<std::string>& environment,
                                    std::string_view name) {
  for (const std::string& setting : environment) {
    if (sets(setting, name)) return setting.substr(name.size() + 1);
  }
  return std::nullopt;
}

void set_value(std::vector<std::string>& environment, const std::string& name,
               const std::string& value) {
  std::erase_if(environment, [&](const std::string& setting) { return sets(setting, name); });
  environment.push_back(name + "=" + value);
}

// HOST:PORT.
void read_master(const std::string& text, HostsOptions& hosts) {
  const size_t colon = text.rfind(':');
  const std::string port = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (colon == 0 || port.empty() || port.size() > 5 ||
      port.find_first_not_of("0123456789") != std::string::npos || std::stoi(port) < 1 ||
      std::stoi(port) > 65535) {
    throw ConfigError("--master is '", text,
                      "'; HOST:PORT of the launcher of node 0 was expected, as gpu1:29400");
  }
  hosts.master_host = text.substr(0, colon);
  hosts.master_port = std::stoi(port);
}

HostsOptions hosts_of(const LaunchPlan& plan) {
  if (plan.command.empty()) {
    throw ConfigError("nothing to run: mgm launch --nproc N -- train CONFIG.yaml");
  }
  if (plan.nproc < 1 || plan.nproc > kMostRanks) {
    throw ConfigError("--nproc is ", plan.nproc, "; it must lie between 1 and ", kMostRanks,
                      ", one rank per GPU");
  }
  if (plan.min_nproc < 0 || plan.min_nproc > plan.nproc) {
    throw ConfigError("--min-nproc is ", plan.min_nproc, "; it must lie between 1 and --nproc (",
                      plan.nproc, ")");
  }
  if (plan.restarts < 0) throw ConfigError("--restarts is ", plan.restarts, "; it is a count");
  if (plan.nodes < 1 || plan.node < 0 || plan.node >= plan.nodes) {
    throw ConfigError("--node-rank is ", plan.node, " and --nnodes ", plan.nodes,
                      "; nodes count from 0 to --nnodes - 1");
  }
  HostsOptions hosts;
  hosts.nodes = plan.nodes;
  hosts.node = plan.node;
  hosts.restarts = plan.restarts;
  hosts.join_timeout_s = plan.join_timeout_s;
  if (plan.nodes > 1) read_master(plan.master, hosts);
  return hosts;
}

// The places of this host's ranks, each with its GPU, and which ranks of all hosts have failed.
// Every host hears of the same failures, so all come to the same number.
class Slots {
 public:
  explicit Slots(const LaunchPlan& plan) : plan_(plan), used_(static_cast<size_t>(plan.nproc)) {
    std::iota(used_.begin(), used_.end(), 0);
  }

  int count() const { return static_cast<int>(used_.size()); }
  bool all_used() const { return count() == plan_.nproc; }

  // True when there are fewer from here on: without the slot of that rank, if it is of this host.
  bool note_failure(const RankFailure& cause) {
    if (++failures_[{cause.node, cause.local_rank}] < kFailuresOfABadSlot) return false;
    const int fewer = next_smaller();
    if (fewer == 0) return false;
    if (cause.node == plan_.node) used_.erase(used_.begin() + cause.local_rank);
    used_.resize(static_cast<size_t>(fewer));
    failures_.clear();  // local ranks are others now
    return true;
  }

  // CUDA_VISIBLE_DEVICES without the GPUs of slots that are left out.
  std::string visible_devices() const {
    const std::string given =
        value_of(plan_.environment, "CUDA_VISIBLE_DEVICES").value_or(std::string());
    const std::vector<std::string> devices = split(given, ',');
    std::vector<std::string> out;
    for (const int slot : used_) {
      const auto i = static_cast<size_t>(slot);
      out.push_back(!given.empty() && i < devices.size() ? devices[i] : std::to_string(slot));
    }
    return join(out, ",");
  }

 private:
  // The global batch is divisible by nproc ranks, and so by any divisor of it.
  int next_smaller() const {
    for (int n = count() - 1; plan_.min_nproc > 0 && n >= plan_.min_nproc; --n) {
      if (plan_.nproc % n == 0) return n;
    }
    return 0;
  }

  const LaunchPlan& plan_;
  std::vector<int> used_;
  std::map<std::pair<int, int>, int> failures_;  // by node and local rank
};

std::vector<std::string> rank_environment(const LaunchPlan& plan, const Slots& slots) {
  std::vector<std::string> out = plan.environment;
  for (const char* name : kOurs) {
    std::erase_if(out, [&](const std::string& setting) { return sets(setting, name); });
  }
  if (!value_of(out, "OMP_NUM_THREADS")) {
    set_value(out, "OMP_NUM_THREADS", std::to_string(std::max(1, usable_cores() / slots.count())));
  }
  if (!slots.all_used()) set_value(out, "CUDA_VISIBLE_DEVICES", slots.visible_devices());
  return out;
}

// Exit code of a signal to stop that came within that time, else 0.
int pause_s(SignalPipe& signals, double seconds) {
  const Timer timer;
  while (timer.seconds() < seconds) {
    pollfd fd = {signals.fd(), POLLIN, 0};
    ::poll(&fd, 1, static_cast<int>(1000 * (seconds - timer.seconds())) + 1);
    const std::vector<int> came = signals.take();
    if (!came.empty()) return 128 + (came[0] == SIGHUP ? SIGTERM : came[0]);
  }
  return 0;
}

}  // namespace

int run_launch(const LaunchPlan& plan) {
  const HostsOptions hosts_options = hosts_of(plan);
  SignalPipe signals;
  const std::unique_ptr<LaunchHosts> hosts = make_launch_hosts(hosts_options, signals);
  Slots slots(plan);
  const auto say = [&](const std::string& text) {
    if (!text.empty()) plan.write(2, "launch: " + text + "\n");
  };
  while (true) {
    const std::variant<Placement, Verdict> begun = hosts->begin(slots.count());
    if (const auto* over = std::get_if<Verdict>(&begun)) {
      say(over->text);
      return over->code;
    }
    const auto& placement = std::get<Placement>(begun);
    const RankGroupOptions group = {plan.command, rank_environment(plan, slots), slots.count(),
                                    plan.grace_s, plan.write};
    const Verdict verdict = hosts->end(run_rank_group(group, placement, signals, hosts->news()));
    say(verdict.text);
    if (!verdict.restart) return verdict.code;
    if (verdict.cause && slots.note_failure(*verdict.cause)) {
      say(cat("local rank ", verdict.cause->local_rank, " of ", verdict.cause->host, " failed ",
              kFailuresOfABadSlot, " times and is left out: ", slots.count(), " ranks on ",
              this_host(), " from here on (--min-nproc)"));
    }
    if (const int code = pause_s(signals, plan.restart_delay_s)) return code;
  }
}

int usable_cores() {
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof cores, &cores) == 0) return std::max(1, CPU_COUNT(&cores));
  return std::max(1, static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)));
}

std::vector<std::string> own_environment() {
  std::vector<std::string> out;
  for (char** setting = environ; *setting != nullptr; ++setting) out.emplace_back(*setting);
  return out;
}

}  // namespace mgm
