// `mgm doctor`: every check that can be made before a run, on every rank, as one list.
//
// A rank looks at its host, GPU, config, weights, tokenizer, data and run folder on its own; the
// first rank compares what must be equal; then, if nothing stands against it, groups are connected
// and tried. A rank that cannot be read or does not come is a finding, not an end.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "config/reader.h"
#include "dist/ranks.h"
#include "train/doctor/finding.h"

namespace mgm {

struct DoctorOptions {
  int64_t samples = 64;      // to build on one rank of each host; < 0: all
  bool deep = false;         // reads every weight
  double wait_s = 120;       // for ranks to come and for groups to connect
  double link_gb_per_s = 0;  // expected; 0: by kind of link
};

// The stages of the file as this rank reads them; empty with `unreadable` set if it cannot.
struct DoctorInput {
  std::string source;
  std::vector<ResolvedConfig> stages;
  std::string unreadable;
};

// Calls `print` on the first rank, once per stage. Collective. Returns, on every rank, kOk or the
// exit code of the first kind of failure. Throws DistError where the store fails.
ExitCode run_doctor(const DoctorInput& input, const Meeting& meeting, const DoctorOptions& options,
                    const std::function<void(const std::string&)>& print);

}  // namespace mgm
