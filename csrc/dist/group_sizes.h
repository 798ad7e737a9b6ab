// Sizes of the flat buffers a ParamStore makes of a model's parameters, without making them: for
// planning and rehearsal. Elements; nothing is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/pass_program.h"
#include "types/param.h"

namespace mgm {

struct GroupSize {
  std::string name;
  // Aligned segments, one after the other (Flat::numel); padded(n, parts) is the buffer.
  int64_t trained = 0, frozen = 0;
  bool experts = false;  // cut as Topology::of_experts says
};

// In the store's order, without packed weights. policies[i] belongs to params[i]. Of experts that
// are dealt to `expert_ranks` ranks one rank's share.
std::vector<GroupSize> group_sizes(const std::vector<Param*>& params,
                                   const std::vector<ParamPolicy>& policies, int expert_ranks = 1);

// The experts of its block that a parameter's rank holds, if they are dealt to `ranks` ranks.
bool holds_expert(const ParamSpec& spec, int64_t experts, int ranks, int expert_rank);
// Experts of a block of these parameters; 0: none.
int64_t experts_of(const std::vector<Param*>& params);

// As the engine hands them to its program.
std::vector<PassProgram::Group> program_groups(const std::vector<GroupSize>& sizes);

}  // namespace mgm
