// What must be equal on every rank, and what must differ: comparison of the ranks' facts.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/doctor/finding.h"

namespace mgm {

// A thing that all ranks must agree on.
struct Shared {
  std::string name;   // "the program"
  std::string value;  // a hash, a version; empty: this rank does not know it, and has said why
  ExitCode kind = ExitCode::kDist;
  Level level = Level::kFail;  // of a difference
  std::string advice = "give every rank the same; one copy on a shared file system does";
};

struct RankFacts {
  int rank = 0;
  int local_rank = 0;
  int node = 0;         // as the launcher counts them; several may be on one host
  std::string host;     // for people
  std::string host_id;  // for comparing
  std::string gpu;      // UUID; empty: on the CPU
  std::vector<Shared> shared;
};
Json to_json(const RankFacts& facts);
RankFacts rank_facts(const Json& json);

// More about a difference between two ranks, or "".
using Explain = std::function<std::string(const std::string& name, int usual, int other)>;

// Names the ranks that differ from the majority (of equally many: from the lowest rank's value) and
// what differs. Unless that ends a run, one finding more says what all agree on.
Findings compare_ranks(const std::vector<RankFacts>& ranks, const Explain& explain);
// Ranks that share a GPU, or a local rank on one node of a host; nothing if none do.
Findings compare_places(const std::vector<RankFacts>& ranks);

// The keys that differ between two configs as config_lines gives them: "train.seed: 1 here, 2 on
// ..."
std::string config_difference(const std::string& usual, const std::string& other);

// `sent`, `received`: of the first rank's clock around the moment a rank read its own.
Findings compare_clocks(const std::vector<double>& clocks, double sent,
                        const std::vector<double>& received);

}  // namespace mgm
