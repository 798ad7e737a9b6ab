// `mgm train CONFIG --plan` and `--rehearse`: their options, and what they print instead of
// training.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "config/reader.h"
#include "train/plan/modes.h"

namespace mgm::cli {

struct PlanArgs {
  bool plan = false, json = false, markdown = false, rehearse = false;
  PlanRequest request;
  std::vector<int> worlds = {1};
  uint64_t gpu_memory = uint64_t{80} << 30;  // bytes

  bool wanted() const { return plan || rehearse; }
};

// `args` must outlive the parsing.
void add_plan_options(CLI::App& command, PlanArgs& args);

std::string plan_output(const ResolvedConfig& stage, PlanArgs args);

}  // namespace mgm::cli
