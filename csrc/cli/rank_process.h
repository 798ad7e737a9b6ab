// This process as one rank of a job: who its peers are, and how it ends when one of them has.
#pragma once

#include <functional>

#include "train/watched.h"

namespace mgm::cli {

// By the launcher's variables; waits for the store up to `timeout_s`. Throws DistError.
Meeting meet_ranks(double timeout_s);

// run(end), with the console's share of a failure: the rank it happened on says it, and the first.
// Throws Exit for anything but kOk.
void run_as_rank(const Meeting& meeting, const std::function<ExitCode(const EndProcess& end)>& run);

}  // namespace mgm::cli
