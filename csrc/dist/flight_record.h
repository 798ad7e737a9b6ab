// What a rank leaves when a job ends badly: who it is, what it was doing and its last collectives.
// From the records of all ranks `blame` says which one did not enter which collective.
#pragma once

#include <string>
#include <vector>

#include "base/fs.h"
#include "base/json.h"
#include "dist/collective_log.h"

namespace mgm {

struct FlightRecord {
  int rank = 0, world = 1;
  std::string host, phase;
  int64_t step = 0;
  std::string cause;  // of this rank's own failure; empty: it ended because of another
  std::vector<CollectiveRecord> collectives;  // oldest first
  Json nccl;                                  // c10d's own recorder, where there is NCCL
};

Json to_json(const FlightRecord& record);
// Throws DataError for JSON that is no record.
FlightRecord flight_record(const Json& json);

// RUN_DIR/flight/rank_N.json. Writing throws Error(kInternal).
void write_flight_record(const fs::path& run_dir, const FlightRecord& record);
// Of all ranks that left one, by rank. Throws DataError naming the file.
std::vector<FlightRecord> read_flight_records(const fs::path& run_dir);

// At a new start: records of the attempt before move to RUN_DIR/flight_before, in place of older
// ones, so that a failure that comes is not told by both. Throws fs errors.
void retire_flight_records(const fs::path& run_dir);
// Whether read_flight_records gives those: no rank has failed since the last start.
bool flight_records_are_old(const fs::path& run_dir);

// One sentence per finding, the most telling first: a rank's own failure, ranks that left nothing,
// ranks that have not entered a collective others wait in, collectives that differ. Never empty.
std::vector<std::string> blame(const std::vector<FlightRecord>& records);

}  // namespace mgm
