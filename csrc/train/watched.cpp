#include "train/watched.h"

#include "train/rank_setup.h"

namespace mgm {

ExitCode run_watched(const ResolvedConfig& resolved, const Meeting& meeting, int run_number,
                     const EndProcess& end, const fs::path& records, const WatchedRun& body) {
  const RunConfig& config = resolved.config;
  if (config.run.dir.empty()) {
    throw_problems(resolved, {{"run.dir", "is required: the folder that takes the run"}});
  }
  const DeviceSetup device = setup_device(config, meeting.env);
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
    const std::exception_ptr told = watch.failed(std::current_exception());
    ranks.abort();
    std::rethrow_exception(told);
  }
}

}  // namespace mgm
