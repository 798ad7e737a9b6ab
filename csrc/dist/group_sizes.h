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
};

// In the store's order, without packed weights. policies[i] belongs to params[i].
std::vector<GroupSize> group_sizes(const std::vector<Param*>& params,
                                   const std::vector<ParamPolicy>& policies);

// As the engine hands them to its program.
std::vector<PassProgram::Group> program_groups(const std::vector<GroupSize>& sizes);

}  // namespace mgm
