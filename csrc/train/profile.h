// Timeline of a few steps: every CPU operation, GPU kernel and copy, as a Chrome trace
// (chrome://tracing, Perfetto). tests/bench/comm reads it for exposed communication.
#pragma once

#include "base/fs.h"
#include "config/run_config.h"

namespace mgm {

class StepProfiler {
 public:
  // Off when config.profile_first is 0. Writes `path` when the last profiled step has been issued;
  // waits for the device around the profiled steps.
  StepProfiler(const LogConfig& config, fs::path path, bool cuda);
  void before_step(int64_t step);
  void after_step(int64_t step);

 private:
  int64_t first_, last_;
  fs::path path_;
  bool cuda_;
};

}  // namespace mgm
