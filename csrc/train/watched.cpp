#include "train/watched.h"

#include <c10/util/Exception.h>

#include "base/deadline.h"
#include "train/rank_setup.h"

namespace mgm {

std::exception_ptr in_words(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const c10::OutOfMemoryError& e) {
    std::string said = e.what_without_backtrace();
    said = said.substr(0, said.find(" If reserved but unallocated memory"));
    return std::make_exception_ptr(InternalError(
        "out of GPU memory: ", said,
        " `mgm train CONFIG --plan` says what fits: a smaller train.micro_batch, train.recompute, "
        "another dist.mode, dist.offload: optimizer."));
  } catch (...) {
    return error;
  }
}

namespace {

struct Ending {
  ExitCode code = ExitCode::kInternal;
  std::string what;
};

Ending ending_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return {e.code(), e.what()};
  } catch (const std::exception& e) {
    return {ExitCode::kInternal, e.what()};
  }
}

}  // namespace

ExitCode run_watched(const ResolvedConfig& resolved, const Meeting& meeting, int run_number,
                     const EndProcess& end, const fs::path& records, const WatchedRun& body) {
  const RunConfig& config = resolved.config;
  if (config.run.dir.empty()) {
    throw_problems(resolved, {{"run.dir", "is required: the folder that takes the run"}});
  }
  const DeviceSetup device = setup_device(config, meeting.env);
  Deadline last_resort;  // outlives what follows
  Ranks ranks = take_place(config, meeting, device, run_number);
  WatchSettings settings;
  settings.limits = config.dist.timeout_s;
  settings.run_dir = records;
  settings.end = end;
  Watch watch(ranks, settings);
  try {
    const ExitCode outcome = body(device, ranks, watch);
    ranks.control->barrier("end of the run");
    ranks.shutdown();
    return outcome;
  } catch (...) {
    const std::exception_ptr told = watch.failed(in_words(std::current_exception()));
    if (ranks.size() > 1) {
      // All has been said; a device or a library that does not answer any more must not keep us.
      // The first rank waits for the others for as long as they may be silent.
      const double patience = 3 * settings.limits.silence;
      last_resort.set(patience, [end, rank = ranks.rank(), ending = ending_of(told)] {
        end(cat("rank ", rank, " has failed and does not come to its end: ", ending.what),
            ending.code, /*alone=*/true);
      });
    }
    ranks.abort();
    std::rethrow_exception(told);
  }
}

}  // namespace mgm
