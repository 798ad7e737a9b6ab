// Every rank's collectives of some steps, in order, without a weight, a tensor or a second process:
// `mgm train CONFIG --rehearse --world N`. The program of dist/pass_program.h, which the engine
// executes, is walked for each rank with what that rank has in its micro-batches; all ranks must
// come to the same list.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "dist/collective_log.h"
#include "dist/group_sizes.h"
#include "train/step_walk.h"

namespace mgm {

// A step: what every rank has in each of its micro-batches, [rank][micro-batch].
struct RehearsedStep {
  std::string what;  // where it comes from, for the report
  std::vector<std::vector<RankBatch>> ranks;
};

// What a rehearsal needs of a run.
struct RehearsalRun {
  DistConfig dist;
  int world = 1, local_world = 1;
  int64_t leaf = 1;  // micro-batches that leave a rank as one gradient (strict)
  std::string compute_dtype, reduce_dtype;  // as the log names them: "BFloat16", "Float"
  std::vector<GroupSize> sizes;
  std::vector<GroupUse> order;
  int64_t experts = 0;     // of a block
  bool row_draws = false;  // rows have random numbers: adapters with dropout
};

// The collectives of one rank in a step, as its log would record them (times are 0; sequence counts
// per group from 0). Rows to experts count 0 elements: the router decides how many.
std::vector<CollectiveRecord> rehearse_rank(const RehearsalRun& run, const RehearsedStep& step,
                                            int rank);

struct Rehearsal {
  struct Total {
    int64_t collectives = 0, elements = 0;
  };
  // Of one rank, all steps: kind of group ("gather") and operation.
  std::map<std::pair<std::string, std::string>, Total> totals;
  std::vector<int64_t> per_step;         // collectives
  std::vector<std::string> differences;  // empty: all ranks agree. At most ten, in words
};

// Walks all ranks through all steps and compares them. Groups of one kind ("gather.0", "gather.1")
// count as the same.
Rehearsal rehearse(const RehearsalRun& run, const std::vector<RehearsedStep>& steps);

// The first place where `mine` is not `theirs`, in words; "" if they are equal.
std::string first_difference(const std::vector<CollectiveRecord>& mine, int rank,
                             const std::vector<CollectiveRecord>& theirs, int other);

// Steps that together hold what goes wrong in practice: pictures on some ranks, on all, on one, on
// none, nothing to learn on some ranks and on all. Drawn from `seed`.
std::vector<RehearsedStep> drawn_steps(int world, int64_t micro_batches, uint64_t seed);

}  // namespace mgm
