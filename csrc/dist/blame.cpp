#include "dist/blame.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/strings.h"
#include "dist/wait_graph.h"

namespace mgm {
namespace {

std::string rank_and_host(const FlightRecord& r) { return cat("rank ", r.rank, " on ", r.host); }

std::string named_collective(const CollectiveRecord& c) {
  if (c.operation == kConnect) return cat("the connecting of group ", c.group);
  if (c.group == kStartGroup) return cat("'", c.label, "' of the start");
  return cat(c.operation, " '", c.label, "' (number ", c.sequence, " of group ", c.group, ")");
}

std::string listed_ranks(const std::vector<int>& ranks) {
  constexpr size_t kShown = 8;
  std::vector<std::string> text;
  for (size_t i = 0; i < ranks.size() && i < kShown; ++i) text.push_back(std::to_string(ranks[i]));
  return cat(ranks.size() == 1 ? "rank " : "ranks ", join(text, ", "),
             ranks.size() > kShown ? cat(" and ", ranks.size() - kShown, " more") : "");
}

using Findings = std::vector<std::string>;

void find_causes(const std::vector<FlightRecord>& records, CauseKind kind, Findings& out) {
  for (const FlightRecord& r : records) {
    if (r.cause.empty() || r.kind != kind) continue;
    out.push_back(kind == CauseKind::kFound ? cat("found by ", rank_and_host(r), ": ", r.cause)
                                            : cat(rank_and_host(r), " failed at step ", r.step,
                                                  ", phase ", r.phase, ": ", r.cause));
  }
}

void find_silent(const std::vector<FlightRecord>& records, Findings& out) {
  for (const FlightRecord& r : records) {
    if (r.silent_s == 0) continue;
    out.push_back(cat(rank_and_host(r), " has given no sign of life for ", strf("%.0f", r.silent_s),
                      " s: stopped, or its host or network is gone. It was at ", place_of(r)));
  }
}

void find_absent(const std::vector<FlightRecord>& records, Findings& out) {
  std::set<int> seen;
  int world = 0;
  for (const FlightRecord& r : records) {
    seen.insert(r.rank);
    world = std::max(world, r.world);
  }
  std::vector<int> absent;
  for (int rank = 0; rank < world; ++rank) {
    if (seen.count(rank) == 0) absent.push_back(rank);
  }
  if (absent.empty()) return;
  out.push_back(cat(listed_ranks(absent), " left no record: killed, or the host is gone"));
}

// Equal numbers must be equal collectives. Of an all-to-all every rank has a size of its own.
bool same(const CollectiveRecord& a, const CollectiveRecord& b) {
  return a.operation == b.operation && a.label == b.label && a.dtype == b.dtype &&
         (a.numel == b.numel || a.operation == "all_to_all");
}

void find_differences(const std::vector<FlightRecord>& records, Findings& out) {
  std::map<std::pair<std::string, int64_t>, std::pair<int, const CollectiveRecord*>> first;
  for (const FlightRecord& r : records) {
    for (const CollectiveRecord& c : r.collectives) {
      const auto [it, fresh] = first.try_emplace({c.group, c.sequence}, std::pair(r.rank, &c));
      const CollectiveRecord& other = *it->second.second;
      if (fresh || same(other, c)) continue;
      out.push_back(cat("number ", c.sequence, " of group ", c.group, " differs: rank ",
                        it->second.first, " entered ", other.operation, " '", other.label, "' of ",
                        other.numel, " ", other.dtype, ", rank ", r.rank, " entered ", c.operation,
                        " '", c.label, "' of ", c.numel, " ", c.dtype));
      return;  // what follows differs as a consequence
    }
  }
}

void find_laggards(const WaitGraph& graph, Findings& out) {
  for (const Culprit& culprit : graph.culprits()) {
    const FlightRecord& r = *culprit.last->record;
    if (r.silent_s > 0) continue;  // told
    const CollectiveRecord* last = culprit.last->collective;
    out.push_back(cat(rank_and_host(r), " has not entered ", named_collective(*culprit.missing),
                      ", which ", listed_ranks(culprit.waiting),
                      culprit.waiting.size() == 1 ? " waits" : " wait", " in; it was at step ",
                      r.step, ", phase ", r.phase, ", and had entered ",
                      last ? named_collective(*last) : "nothing of that group", " last"));
  }
}

// "rank 0 on a", "ranks 0, 1 on a and ranks 2, 3 on b": of a firewall between hosts no rank knows
// more than that all wait.
std::string ranks_by_host(const GroupProgress& progress) {
  std::vector<std::pair<std::string, std::vector<int>>> hosts;
  for (const auto& [rank, last] : progress) {
    const std::string& host = last.record->host;
    auto it =
        std::find_if(hosts.begin(), hosts.end(), [&](const auto& h) { return h.first == host; });
    if (it == hosts.end()) it = hosts.insert(hosts.end(), {host, {}});
    it->second.push_back(rank);
  }
  std::vector<std::string> out;
  for (const auto& [host, ranks] : hosts) out.push_back(cat(listed_ranks(ranks), " on ", host));
  return join(out, " and ");
}

// What all ranks have entered last: they are at work of their own behind it, as over files on a
// server that does not answer. "" where it is not one thing.
std::string last_of_all(const std::vector<FlightRecord>& records) {
  const CollectiveRecord* last = nullptr;
  for (const FlightRecord& r : records) {
    if (r.collectives.empty()) return "";
    const CollectiveRecord& c = r.collectives.back();
    if (last && (c.group != last->group || c.sequence != last->sequence)) return "";
    last = &c;
  }
  return last ? cat(", ", named_collective(*last), " last; each is at work of its own") : "";
}

// Nobody is behind, and yet some wait.
void find_stuck(const std::string& group, const GroupProgress& progress, Findings& out) {
  int64_t front = kConnectNumber;
  for (const auto& [rank, last] : progress) front = std::max(front, last.sequence());
  const CollectiveRecord* stuck = nullptr;
  std::vector<int> waiting;
  std::vector<std::string> gone_on;  // what they owe the others may not have left them
  for (const auto& [rank, last] : progress) {
    if (last.sequence() < front) return;
    if (last.waits) {
      waiting.push_back(rank);
      stuck = last.collective;
    } else {
      gone_on.push_back(rank_and_host(*last.record));
    }
  }
  if (!stuck || progress.size() < 2) return;
  if (gone_on.empty() && stuck->operation == kConnect) {
    out.push_back(cat(ranks_by_host(progress), " are all connecting group ", group,
                      " and it has not ended: some of them do not reach each other. No firewall "
                      "may stand between them, on any port; GLOO_SOCKET_IFNAME and "
                      "NCCL_SOCKET_IFNAME name the network interface to take"));
  } else if (gone_on.empty()) {
    out.push_back(cat("all ", progress.size(), " ranks of group ", group, " have entered ",
                      named_collective(*stuck),
                      " and it has not ended: the network or a device between them"));
  } else {
    out.push_back(cat(join(gone_on, ", "), gone_on.size() == 1 ? " has" : " have", " ended ",
                      named_collective(*stuck), ", which ", listed_ranks(waiting),
                      waiting.size() == 1 ? " waits" : " wait",
                      " in: stopped or very slow, or the network between them"));
  }
}

}  // namespace

std::vector<std::string> blame(const std::vector<FlightRecord>& records) {
  Findings out;
  find_causes(records, CauseKind::kOwn, out);
  find_causes(records, CauseKind::kFound, out);
  // Who failed by itself has ended the job at once, and who was behind then was only slower, or was
  // not sent what it waited for. And when a rank that stood still goes on after the others have
  // ended, its record is of later than theirs, and no longer shows who waited for whom.
  const bool told = !out.empty();
  find_silent(records, out);
  find_absent(records, out);
  find_differences(records, out);
  const WaitGraph graph(records);
  if (!told) find_laggards(graph, out);
  if (out.empty()) find_causes(records, CauseKind::kEcho, out);
  if (out.empty()) {
    for (const auto& [group, progress] : graph.groups()) find_stuck(group, progress, out);
  }
  if (out.empty()) {
    out.push_back(cat("the records of ", records.size(),
                      " ranks agree: every collective that was entered has ended",
                      last_of_all(records)));
  }
  return out;
}

}  // namespace mgm
