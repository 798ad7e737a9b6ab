// What a rank leaves when a job ends badly: who it is, what it was doing and its last collectives.
// From the records of all ranks `blame` (dist/blame.h) says which one did not enter which
// collective.
#pragma once

#include <string>
#include <vector>

#include "base/fs.h"
#include "base/json.h"
#include "dist/collective_log.h"
#include "dist/rank_groups.h"

namespace mgm {

// What the cause in a record is.
enum class CauseKind {
  kOwn,    // this rank failed by itself
  kFound,  // it has found out which rank hangs or is gone, and told the others
  kEcho    // an error of communication that nobody could explain: another rank is mostly behind it
};

struct FlightRecord {
  int rank = 0, world = 1;
  std::string host, phase;
  int64_t step = 0;
  std::string cause;  // empty: it ended because of another
  CauseKind kind = CauseKind::kOwn;
  std::vector<GroupPlace> groups;             // that it communicates in
  std::vector<CollectiveRecord> collectives;  // oldest first
  Json nccl;                                  // c10d's own recorder, where there is NCCL
  double silent_s = 0;  // in memory alone, of a heartbeat: so long without another
};

// "step 7, phase step, last collective: 'loss'".
std::string place_of(const FlightRecord& record);

Json to_json(const FlightRecord& record);
// Throws DataError for JSON that is no record, or not one of a rank of at most kMaxWorld.
FlightRecord flight_record(const Json& json);
inline constexpr int kMaxWorld = 1 << 20;  // as many as dist.shard_size may name

// RUN_DIR/flight/rank_N.json. Writing throws Error(kInternal).
void write_flight_record(const fs::path& run_dir, const FlightRecord& record);
// Of all ranks that left one, by rank. Throws DataError naming the file.
std::vector<FlightRecord> read_flight_records(const fs::path& run_dir);

// At a new start: records of the attempt before move to RUN_DIR/flight_before, in place of older
// ones, so that a failure that comes is not told by both. Throws fs errors.
void retire_flight_records(const fs::path& run_dir);
// Whether read_flight_records gives those: no rank has failed since the last start.
bool flight_records_are_old(const fs::path& run_dir);

}  // namespace mgm
