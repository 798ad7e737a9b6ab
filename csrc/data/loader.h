// Batches for one rank, in the plan's order, prepared ahead by worker threads. The same bytes
// whatever the number of workers; at most data.prefetch micro-batches exist beyond the one handed
// out.
#pragma once

#include <optional>
#include <set>
#include <vector>

#include "base/worker_pool.h"
#include "data/plan.h"
#include "data/problem.h"
#include "data/sample.h"
#include "types/batch.h"

namespace mgm {

// The part of a plan that one loader serves. A global batch is cut into micro-batches in order, and
// runs of `leaf` micro-batches are dealt to the ranks in turn: run number r * world + rank is the
// r-th of that rank.
struct LoaderRange {
  int64_t micro_batch = 1;  // samples
  int64_t rank = 0;
  int64_t world = 1;
  int64_t first_step = 0;  // from 0; after a resume the number of steps already done
  int64_t end_step = 0;    // one past the last
  int64_t leaf = 1;        // micro-batches; more than one with dist.reduction: strict
};

// Micro-batches of each rank in a step. Throws ConfigError with the nearest sizes if those of all
// ranks do not divide the global batch.
int64_t micro_batches_per_rank(int64_t global_batch, int64_t micro_batch, int64_t leaf,
                               int64_t world);

struct StepBatches {
  int64_t step = 0;          // from 0
  std::vector<Batch> micro;  // one per accumulation step; may hold no sample at all
  int64_t holes = 0;         // of this rank: past the end of the epoch, or skipped
  std::vector<Problem> skipped;
  int64_t collapsed_markers = 0;  // text.markers: collapse
  int64_t rewritten_paths = 0;    // pictures found through data.sources[].rewrites
};

class Loader {
 public:
  // `plan` and `builder` must outlive the loader. Throws ConfigError if the micro-batches of all
  // ranks do not divide the global batch, DataError if data.on_error is stop and a record is
  // malformed (that is known before the first step).
  Loader(const Plan& plan, const SampleBuilder& builder, const DataConfig& data,
         const LoaderRange& range);

  // The next step, or nothing after the last one. With data.on_error: stop, throws DataError at the
  // first bad sample's turn; with skip, a bad sample leaves a hole, is logged once and counted.
  std::optional<StepBatches> next();

  int64_t total_skipped() const { return total_skipped_; }

 private:
  struct MicroBatch {
    Batch batch;
    std::vector<Problem> problems;
    int64_t collapsed_markers = 0;
    int64_t rewritten_paths = 0;
  };
  MicroBatch make(int64_t number) const;
  void report(const Problem& problem);

  const Plan& plan_;
  const SampleBuilder& builder_;
  const OnError on_error_;
  const LoaderRange range_;
  const int64_t accumulation_;
  int64_t next_step_;
  int64_t total_skipped_ = 0;
  std::set<int64_t> reported_;  // samples, so that epochs do not repeat a warning
  std::optional<OrderedWorkers<MicroBatch>> workers_;  // last: its threads use the rest
};

}  // namespace mgm
