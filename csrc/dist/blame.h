// Which rank has ended a job, from the flight records (or last heartbeats) of its ranks.
#pragma once

#include <string>
#include <vector>

#include "dist/flight_record.h"

namespace mgm {

// One sentence per finding, the most telling first: ranks that failed by themselves; what a rank
// had found out when the job ended; ranks that are silent or left nothing; collectives that differ;
// ranks that have not entered a collective others wait in, and that wait for nobody. What only
// follows from another rank's end is told where there is nothing else. Never empty.
std::vector<std::string> blame(const std::vector<FlightRecord>& records);

}  // namespace mgm
