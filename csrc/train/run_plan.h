// `mgm train --plan`: parameters, FLOPs, memory and steps of a run from its config alone. Allocates
// nothing and needs no weights, data or tokenizer.
#pragma once

#include <string>
#include <vector>

#include "model/mini_gemini.h"
#include "types/param.h"

namespace mgm {

struct PartPlan {
  std::string name;
  int64_t params = 0, trained = 0;
  double forward_flops = 0;   // of one sample
  double backward_flops = 0;  // of one sample, recomputation not included
  double recompute_flops = 0;
};

struct RunPlan {
  std::vector<PartPlan> parts;
  ImageGeometry geometry;
  int64_t visual_tokens = 0,
          text_tokens = 0;    // of the sample that FLOPs and activations are given for
  int64_t micro_batches = 0;  // per optimizer step
  int64_t samples = 0, steps = 0, warmup_steps = 0;
  // Bytes on one rank.
  double weights = 0, master = 0, moments = 0, gradients = 0, activations = 0, logits = 0;
  double total_bytes() const {
    return weights + master + moments + gradients + activations + logits;
  }
  int64_t params() const;
  int64_t trained() const;
  double step_flops(int64_t global_batch) const;
};

// `text_tokens`: assumed text length of a sample with an image.
RunPlan make_run_plan(const RunConfig& config, const MiniGemini& model,
                      const std::vector<ParamPolicy>& policies, int64_t text_tokens);

// The report that --plan prints.
std::string format_run_plan(const RunPlan& plan, const RunConfig& config);

// The table of what trains and what is frozen, per part; printed at the start of every run.
std::string format_trained_table(const std::vector<PartPlan>& parts);
std::vector<PartPlan> count_parts(const std::vector<Param*>& params,
                                  const std::vector<ParamPolicy>& policies);

}  // namespace mgm
