// What a check before a run has found, and the one list that is made of all ranks' findings.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace mgm {

enum class Level { kOk, kWarn, kFail };

struct Finding {
  Level level = Level::kOk;
  ExitCode kind = ExitCode::kOk;  // of a failure: what it would have ended the run with
  std::string check;              // "config", "data", "weights", "ranks", "gpu", "host", ...
  std::string text;               // what was found, with the values
  std::string advice;             // what to do; may be empty
  bool operator==(const Finding&) const = default;
};
using Findings = std::vector<Finding>;

Finding passed(const std::string& check, const std::string& text);
Finding warned(const std::string& check, const std::string& text, const std::string& advice);
Finding failed(const std::string& check, ExitCode kind, const std::string& text,
               const std::string& advice);
// Of an exception: a typed error keeps its code and message.
Finding failed(const std::string& check, const std::exception& error);

Json to_json(const Findings& findings);
Findings findings_from_json(const Json& json);

// Findings of all ranks as one list, worst first; the same finding of several ranks is one line
// that names them.
std::string format_findings(const std::map<int, Findings>& by_rank, int world);
// kOk, or the kind of failure that comes first: config, data, weights, ranks, host.
ExitCode outcome_of(const std::map<int, Findings>& by_rank);
// "rank 3", "ranks 0-3, 7".
std::string name_ranks(const std::vector<int>& ranks);

}  // namespace mgm
