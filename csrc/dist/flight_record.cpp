#include "dist/flight_record.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "base/json_problem.h"

namespace mgm {
namespace {

fs::path folder(const fs::path& run_dir) { return run_dir / "flight"; }
fs::path old_folder(const fs::path& run_dir) { return run_dir / "flight_before"; }

std::string file_name(int rank) { return cat("rank_", rank, ".json"); }

constexpr const char* kKinds[] = {"own", "found", "echo"};
constexpr size_t kMaxGroups = 64;  // RankGroups has ten

CauseKind kind_of(const std::string& name) {
  for (size_t i = 0; i < std::size(kKinds); ++i) {
    if (name == kKinds[i]) return static_cast<CauseKind>(i);
  }
  throw DataError("not a flight record: cause_is '", name, "' is not own, found or echo");
}

Json groups_json(const std::vector<GroupPlace>& groups) {
  Json out = Json::array();
  for (const GroupPlace& g : groups) {
    out.push_back({{"name", g.name}, {"size", g.size}, {"first", g.first}, {"stride", g.stride}});
  }
  return out;
}

std::vector<GroupPlace> groups_of(const Json& json, int world) {
  std::vector<GroupPlace> out;
  for (const Json& j : json) {
    const auto number = [&](const char* key) { return j.at(key).get<int64_t>(); };
    GroupPlace g;
    g.name = j.at("name").get<std::string>();
    const int64_t size = number("size"), first = number("first"), stride = number("stride");
    const bool fits = size >= 1 && size <= world && first >= 0 && first < world && stride >= 1 &&
                      stride <= world && first + (size - 1) * stride < world;
    if (!fits || out.size() == kMaxGroups) {
      throw DataError("not a flight record: group '", g.name, "' of ", size, " ranks from ", first,
                      " by ", stride,
                      fits ? cat(" is one more than ", kMaxGroups)
                           : cat(" does not lie in the world of ", world));
    }
    g.size = static_cast<int>(size);
    g.first = static_cast<int>(first);
    g.stride = static_cast<int>(stride);
    out.push_back(std::move(g));
  }
  return out;
}

}  // namespace

std::string place_of(const FlightRecord& r) {
  return cat("step ", r.step, ", phase ", r.phase, ", last collective: '",
             r.collectives.empty() ? "no collective" : r.collectives.back().label, "'");
}

Json to_json(const FlightRecord& r) {
  return {{"rank", r.rank},
          {"world", r.world},
          {"host", r.host},
          {"phase", r.phase},
          {"step", r.step},
          {"cause", r.cause},
          {"cause_is", kKinds[static_cast<int>(r.kind)]},
          {"groups", groups_json(r.groups)},
          {"nccl", r.nccl},
          {"collectives", Json(to_json(r.collectives))}};
}

FlightRecord flight_record(const Json& json) {
  try {
    FlightRecord r;
    const auto rank = json.at("rank").get<int64_t>(), world = json.at("world").get<int64_t>();
    if (world < 1 || world > kMaxWorld || rank < 0 || rank >= world) {
      throw DataError("not a flight record: rank ", rank, " of a world of ", world,
                      "; a world has 1 to ", kMaxWorld, " ranks");
    }
    r.rank = static_cast<int>(rank);
    r.world = static_cast<int>(world);
    r.host = json.at("host").get<std::string>();
    r.phase = json.at("phase").get<std::string>();
    r.step = json.at("step").get<int64_t>();
    r.cause = json.at("cause").get<std::string>();
    r.kind = kind_of(json.at("cause_is").get<std::string>());
    r.groups = groups_of(json.at("groups"), r.world);
    r.collectives = collective_records(json.at("collectives"));
    r.nccl = json.value("nccl", Json());
    return r;
  } catch (const Json::exception& e) {
    throw DataError("not a flight record: ", json_problem(e));
  }
}

void write_flight_record(const fs::path& run_dir, const FlightRecord& record) {
  make_dirs(folder(run_dir));
  write_file_atomic(folder(run_dir) / file_name(record.rank), to_json(record).dump(1) + "\n");
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
    const Json json = read_json(entry.path());  // names the file itself
    try {
      out.push_back(flight_record(json));
    } catch (const DataError& e) {
      throw DataError(entry.path().string(), ": ", e.what());
    }
    if (entry.path().filename() != file_name(out.back().rank)) {
      throw DataError(entry.path().string(), ": is the record of rank ", out.back().rank,
                      ", which belongs into ", file_name(out.back().rank));
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

}  // namespace mgm
