// `mgm train --plan`: parameters, FLOPs, memory, communication and steps of a run from its config
// alone. Allocates nothing and needs no weights, data or tokenizer.
#pragma once

#include <string>
#include <vector>

#include "config/reader.h"
#include "model/mini_gemini.h"
#include "train/plan/modes.h"
#include "types/batch.h"
#include "types/param.h"

namespace mgm {

struct PartPlan {
  std::string name;
  int64_t params = 0, trained = 0;
  UseFlops flops;  // of one sample
};

std::vector<PartPlan> count_parts(const std::vector<Param*>& params,
                                  const std::vector<ParamPolicy>& policies);

// The table of what trains and what is frozen, per part; printed at the start of every run.
std::string format_trained_table(const std::vector<PartPlan>& parts);

enum class PlanFormat { kText, kJson, kMarkdown };

// The report that --plan prints, for each of `worlds` ranks on the request's machines.
std::string plan_report(const ResolvedConfig& resolved, const PlanRequest& request,
                        const std::vector<int>& worlds, PlanFormat format);

// ---- a run beside its plan ----------------------------------------------------------------------

BatchShape shape_of(const Batch& batch);
BatchShape larger(const BatchShape& a, const BatchShape& b);  // of each number

// What the device allocator of this rank should report as its peak (bytes), given the largest
// micro-batch so far and the micro-batches of a step.
double planned_peak(const RunConfig& config, const MiniGemini& model,
                    const std::vector<ParamPolicy>& policies, const Topology& topology,
                    const BatchShape& largest, int64_t micro_batches);

// "peak memory 118.4 GiB, planned 117.9 GiB (-0.4 %)".
std::string compare_with_plan(double measured, double planned);

}  // namespace mgm
