// A run of several ranks under a watch: whatever ends one rank ends all, with one sentence.
#pragma once

#include <exception>
#include <functional>
#include <string>

#include "base/error.h"
#include "config/reader.h"
#include "dist/watch.h"
#include "train/device.h"

namespace mgm {

using EndProcess = std::function<void(const std::string& sentence, ExitCode code, bool alone)>;
using WatchedRun = std::function<ExitCode(const DeviceSetup& device, Ranks& ranks, Watch& watch)>;

// Sets up the device, takes this rank's place and runs `body`, which connects the groups
// (train/rank_setup.h). `run_number` counts the runs of this process; `end` leaves the process when
// a rank has failed and this one cannot be unwound (dist/watch.h); `records` takes flight records,
// "" leaves none. Collective. Throws what `body` throws, or PeerError with what happened on another
// rank.
ExitCode run_watched(const ResolvedConfig& resolved, const Meeting& meeting, int run_number,
                     const EndProcess& end, const fs::path& records, const WatchedRun& body);

// `error`, or where a GPU's allocator threw it, an InternalError with what it said and what helps.
std::exception_ptr in_words(std::exception_ptr error);

}  // namespace mgm
