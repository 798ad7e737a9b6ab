#include "checkpoint/state_layout.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/json_problem.h"
#include "formats/dtype.h"

namespace mgm {
namespace {

constexpr int64_t kMostRanks = 1 << 20;

// Throws what is wrong with a group as text.
void check_group(const StateGroup& group, int world) {
  const auto fail = [&](const std::string& what) {
    throw CheckpointError("group ", group.name, ": ", what);
  };
  int64_t end = 0;
  for (const StateSegment& s : group.segments) {
    if (s.offset < end || s.offset > group.numel || s.numel > group.numel - s.offset)
      fail(cat("parameter ", s.name, " at ", s.offset, " overlaps another or leaves the buffer"));
    end = s.offset + s.numel;
  }
  if (static_cast<int>(group.ranges.size()) != world)
    fail(cat(group.ranges.size(), " ranges for ", world, " ranks"));
  std::vector<FlatRange> sorted = group.ranges;
  std::sort(sorted.begin(), sorted.end(), [](const FlatRange& a, const FlatRange& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t covered = 0;
  for (const FlatRange& range : sorted) {
    if (range.size() == 0) continue;
    if (range.begin != covered || range.end < range.begin)
      fail(cat("the ranks' ranges overlap or leave a hole at element ", covered));
    covered = range.end;
  }
  if (covered != group.numel)
    fail(cat("the ranks' ranges hold ", covered, " of ", group.numel, " elements"));
}

StateSegment parse_segment(const Json& json) {
  StateSegment s;
  s.name = json.at("name").get<std::string>();
  s.shape = json.at("shape").get<std::vector<int64_t>>();
  s.offset = json.at("offset").get<int64_t>();
  const auto bytes = shape_bytes(s.shape, sizeof(float));
  if (!bytes || s.offset < 0)
    throw CheckpointError("parameter ", s.name, ": impossible shape or offset");
  s.numel = static_cast<int64_t>(*bytes / sizeof(float));
  return s;
}

StateGroup parse_group(const Json& json) {
  StateGroup group;
  group.name = json.at("name").get<std::string>();
  group.numel = json.at("numel").get<int64_t>();
  for (const Json& segment : json.at("segments")) group.segments.push_back(parse_segment(segment));
  for (const Json& range : json.at("ranges"))
    group.ranges.push_back({range.at(0).get<int64_t>(), range.at(1).get<int64_t>()});
  return group;
}

}  // namespace

std::map<std::string, StateLayout::Place> StateLayout::places() const {
  std::map<std::string, Place> out;
  for (const StateGroup& group : groups) {
    for (const StateSegment& segment : group.segments) out[segment.name] = {&group, &segment};
  }
  return out;
}

FlatRange written_range(const ParamGroup& group, const Topology& run, int rank) {
  Topology t = run;
  t.rank = rank;
  const int64_t numel = group.trained.numel;
  const int64_t begin = group.experts ? t.expert_rank() * numel : 0;
  t = Topologies(t).of(group.experts);
  const int64_t part = padded(numel, t.shard_size) / t.shard_size;
  const int64_t chunks = part / kFlatAlign;  // cut at the alignment of everything else
  const auto cut = [&](int64_t replica) {
    const int64_t at = part * t.shard_rank() + chunks * replica / t.replicas * kFlatAlign;
    return begin + std::min(at, numel);
  };
  return {cut(t.replica_rank()), cut(t.replica_rank() + 1)};
}

StateLayout state_layout(const ParamStore& store) {
  const Topology& topology = store.settings().topology;
  StateLayout out;
  out.mode = name_of(topology.mode);
  out.world = topology.world;
  out.shard_size = topology.shard_size;
  for (const ParamGroup& group : store.groups()) {
    if (group.trained.empty()) continue;
    StateGroup state{group.name, group.trained.numel, {}, {}};
    if (group.experts) state.numel *= topology.expert_ranks;
    for (const Segment& s : group.trained.all_segments())
      state.segments.push_back({s.param->spec.name, s.param->spec.shape, s.offset, s.numel});
    for (int rank = 0; rank < topology.world; ++rank)
      state.ranges.push_back(written_range(group, topology, rank));
    out.groups.push_back(std::move(state));
  }
  return out;
}

Json to_json(const StateLayout& layout) {
  Json groups = Json::array();
  for (const StateGroup& group : layout.groups) {
    Json segments = Json::array(), ranges = Json::array();
    for (const StateSegment& s : group.segments)
      segments.push_back({{"name", s.name}, {"shape", s.shape}, {"offset", s.offset}});
    for (const FlatRange& range : group.ranges)
      ranges.push_back(Json::array({range.begin, range.end}));
    groups.push_back({{"name", group.name},
                      {"numel", group.numel},
                      {"segments", std::move(segments)},
                      {"ranges", std::move(ranges)}});
  }
  return {{"mode", layout.mode},
          {"world", layout.world},
          {"shard_size", layout.shard_size},
          {"groups", std::move(groups)}};
}

StateLayout parse_state_layout(const Json& json, const std::string& source) {
  StateLayout out;
  try {
    const auto world = json.at("world").get<int64_t>();
    const auto shard_size = json.at("shard_size").get<int64_t>();
    if (world < 1 || world > kMostRanks || shard_size < 1 || shard_size > world)
      throw CheckpointError(world, " ranks in groups of ", shard_size);
    out.mode = json.at("mode").get<std::string>();
    out.world = static_cast<int>(world);
    out.shard_size = static_cast<int>(shard_size);
    std::set<std::string> names, groups;
    for (const Json& group : json.at("groups")) {
      out.groups.push_back(parse_group(group));
      const StateGroup& parsed = out.groups.back();
      check_group(parsed, out.world);
      if (!groups.insert(parsed.name).second)
        throw CheckpointError("group ", parsed.name, " occurs twice");
      for (const StateSegment& s : parsed.segments) {
        if (!names.insert(s.name).second)
          throw CheckpointError("parameter ", s.name, " occurs twice");
      }
    }
  } catch (const Json::exception& e) {
    throw CheckpointError(source, ": malformed layout: ", json_problem(e));
  } catch (const CheckpointError& e) {
    throw CheckpointError(source, ": malformed layout: ", e.what());
  }
  return out;
}

}  // namespace mgm
