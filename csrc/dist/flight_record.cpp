#include "dist/flight_record.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"

namespace mgm {
namespace {

fs::path folder(const fs::path& run_dir) { return run_dir / "flight"; }
fs::path old_folder(const fs::path& run_dir) { return run_dir / "flight_before"; }

std::string who(const FlightRecord& r) { return cat("rank ", r.rank, " on ", r.host); }

std::string what(const CollectiveRecord& c) {
  return cat(c.operation, " '", c.label, "' (number ", c.sequence, " of group ", c.group, ")");
}

std::string names(const std::vector<int>& ranks) {
  constexpr size_t kShown = 8;
  std::vector<std::string> text;
  for (size_t i = 0; i < ranks.size() && i < kShown; ++i) text.push_back(std::to_string(ranks[i]));
  return cat(ranks.size() == 1 ? "rank " : "ranks ", join(text, ", "),
             ranks.size() > kShown ? cat(" and ", ranks.size() - kShown, " more") : "");
}

// The last collective of each group, per rank.
using Latest = std::map<int, CollectiveRecord>;

std::map<std::string, Latest> latest_of(const std::vector<FlightRecord>& records) {
  std::map<std::string, Latest> out;
  for (const FlightRecord& r : records) {
    for (const CollectiveRecord& c : r.collectives) {
      CollectiveRecord& last = out[c.group][r.rank];
      if (last.group.empty() || c.sequence > last.sequence) last = c;
    }
  }
  return out;
}

void find_laggards(const std::string& group, const Latest& latest,
                   const std::vector<FlightRecord>& records, std::vector<std::string>& out) {
  int64_t front = 0;
  for (const auto& [rank, last] : latest) front = std::max(front, last.sequence);
  const CollectiveRecord* waited_for = nullptr;
  std::vector<int> waiting;
  for (const auto& [rank, last] : latest) {
    if (last.sequence != front || (last.left_s > 0 && !last.on_device)) continue;
    waiting.push_back(rank);
    waited_for = &last;
  }
  if (!waited_for) return;  // whoever came this far has left again: nobody waits
  bool behind = false;
  for (const auto& [rank, last] : latest) {
    if (last.sequence == front) continue;
    behind = true;
    const auto record = std::find_if(records.begin(), records.end(),
                                     [rank = rank](const auto& r) { return r.rank == rank; });
    out.push_back(cat(who(*record), " has not entered ", what(*waited_for), ", which ",
                      names(waiting), waiting.size() == 1 ? " waits" : " wait",
                      " in; it was at step ", record->step, ", phase ", record->phase,
                      ", and had entered ", what(last), " last"));
  }
  if (behind || latest.size() < 2) return;
  std::vector<std::string> gone_on;  // what they owe the others may not have left them
  for (const auto& [rank, last] : latest) {
    if (std::count(waiting.begin(), waiting.end(), rank) > 0) continue;
    const auto record = std::find_if(records.begin(), records.end(),
                                     [rank = rank](const auto& r) { return r.rank == rank; });
    gone_on.push_back(who(*record));
  }
  if (gone_on.empty()) {
    out.push_back(cat("all ", latest.size(), " ranks of group ", group, " have entered ",
                      what(*waited_for),
                      " and it has not ended: the network or a device between "
                      "them"));
  } else {
    out.push_back(cat(join(gone_on, ", "), gone_on.size() == 1 ? " has" : " have", " ended ",
                      what(*waited_for), ", which ", names(waiting),
                      waiting.size() == 1 ? " waits" : " wait",
                      " in: stopped or very slow, or the network between them"));
  }
}

// Equal numbers must be equal collectives. Of an all-to-all every rank has a size of its own.
bool same(const CollectiveRecord& a, const CollectiveRecord& b) {
  return a.operation == b.operation && a.label == b.label && a.dtype == b.dtype &&
         (a.numel == b.numel || a.operation == "all_to_all");
}

void find_differences(const std::vector<FlightRecord>& records, std::vector<std::string>& out) {
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

}  // namespace

Json to_json(const FlightRecord& r) {
  return {{"rank", r.rank}, {"world", r.world},
          {"host", r.host}, {"phase", r.phase},
          {"step", r.step}, {"cause", r.cause},
          {"nccl", r.nccl}, {"collectives", Json(to_json(r.collectives))}};
}

FlightRecord flight_record(const Json& json) {
  try {
    FlightRecord r;
    r.rank = json.at("rank").get<int>();
    r.world = json.at("world").get<int>();
    r.host = json.at("host").get<std::string>();
    r.phase = json.at("phase").get<std::string>();
    r.step = json.at("step").get<int64_t>();
    r.cause = json.at("cause").get<std::string>();
    r.collectives = collective_records(json.at("collectives"));
    r.nccl = json.value("nccl", Json());
    return r;
  } catch (const Json::exception& e) {
    throw DataError("not a flight record: ", e.what());
  }
}

void write_flight_record(const fs::path& run_dir, const FlightRecord& record) {
  make_dirs(folder(run_dir));
  write_file_atomic(folder(run_dir) / cat("rank_", record.rank, ".json"),
                    to_json(record).dump(1) + "\n");
}

std::vector<FlightRecord> read_flight_records(const fs::path& run_dir) {
  const fs::path from = flight_records_are_old(run_dir) ? old_folder(run_dir) : folder(run_dir);
  if (!fs::is_directory(from)) {
    throw DataError(run_dir.string(), ": no flight records (", folder(run_dir).string(),
                    "): no run of several ranks has failed here");
  }
  std::vector<FlightRecord> out;
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().extension() != ".json") continue;
    try {
      out.push_back(flight_record(read_json(entry.path())));
    } catch (const DataError& e) {
      throw DataError(entry.path().string(), ": ", e.what());
    }
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.rank < b.rank; });
  return out;
}

void retire_flight_records(const fs::path& run_dir) {
  if (!fs::is_directory(folder(run_dir))) return;
  fs::remove_all(old_folder(run_dir));
  fs::rename(folder(run_dir), old_folder(run_dir));
}

bool flight_records_are_old(const fs::path& run_dir) {
  return !fs::is_directory(folder(run_dir)) && fs::is_directory(old_folder(run_dir));
}

std::vector<std::string> blame(const std::vector<FlightRecord>& records) {
  std::vector<std::string> out;
  std::set<int> seen;
  int world = 0;
  for (const FlightRecord& r : records) {
    seen.insert(r.rank);
    world = std::max(world, r.world);
    if (r.cause.empty()) continue;
    out.push_back(cat(who(r), " failed at step ", r.step, ", phase ", r.phase, ": ", r.cause));
  }
  std::vector<int> silent;
  for (int rank = 0; rank < world; ++rank) {
    if (seen.count(rank) == 0) silent.push_back(rank);
  }
  if (!silent.empty()) {
    out.push_back(cat(names(silent), " left no record: killed, or the host is gone"));
  }
  for (const auto& [group, latest] : latest_of(records)) {
    find_laggards(group, latest, records, out);
  }
  find_differences(records, out);
  if (out.empty()) {
    out.push_back(cat("the records of ", records.size(),
                      " ranks agree: every collective that was "
                      "entered has ended"));
  }
  return out;
}

}  // namespace mgm
