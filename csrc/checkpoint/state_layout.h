// Where the elements of a training state lie in the shard files of a checkpoint. A group's trained
// parameters have fixed places in one flat buffer (dist/param_store.h) that do not depend on the
// ranks (of dealt experts it is the buffers of an expert group, one behind another); a shard file
// holds one range of it. With this table a reader of any world size and mode finds its elements by
// intersecting ranges.
//
// In state.json, under "layout":
//   {"mode": "zero2", "world": 4, "shard_size": 4, "groups": [{"name": ..., "numel": ...,
//    "segments": [{"name": ..., "shape": [...], "offset": ...}], "ranges": [[begin, end], ...]}]}
// `ranges` has one entry per rank, in elements of the flat buffer; together they tile it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "dist/param_store.h"

namespace mgm {

// What AdamW keeps per trained element, fp32; also the names of the tensors, as "master.<group>".
inline constexpr const char* kStateKinds[] = {"master", "exp_avg", "exp_avg_sq"};

struct FlatRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// One trained parameter.
struct StateSegment {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0, numel = 0;  // elements of the group's flat buffer
};

struct StateGroup {
  std::string name;
  int64_t numel = 0;
  std::vector<StateSegment> segments;  // by offset
  std::vector<FlatRange> ranges;       // by rank
};

struct StateLayout {
  std::string mode;
  int world = 1, shard_size = 1;
  std::vector<StateGroup> groups;

  struct Place {
    const StateGroup* group = nullptr;
    const StateSegment* segment = nullptr;
  };
  // By parameter. The layout must outlive it.
  std::map<std::string, Place> places() const;
};

// What rank `rank` of the run writes of a group's trained buffer: its part without the padding at
// the end; ranks that hold the same part share the writing. Of dealt experts the buffers of an
// expert group's ranks count as one, one behind another.
FlatRange written_range(const ParamGroup& group, const Topology& run, int rank);

// Of everything that trains, as all ranks together write it.
StateLayout state_layout(const ParamStore& store);

Json to_json(const StateLayout& layout);
// Throws CheckpointError naming `source` when the table contradicts itself: places that overlap or
// leave the buffer, ranges that do not tile it, a name twice.
StateLayout parse_state_layout(const Json& json, const std::string& source);

}  // namespace mgm
