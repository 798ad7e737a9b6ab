// Whole parameters out of the parts that ranks hold, one group at a time.
#pragma once

#include <functional>

#include "dist/param_store.h"
#include "dist/ranks.h"

namespace mgm {

// Calls `take` on rank 0 for every parameter of `group`, trained ones first, in its shape: the fp32
// master of what trains, what is frozen in the dtype it is used in, on the store's device; valid
// during the call. Not of dealt experts. Needs room for one more copy of the group on every rank.
// Collective.
void visit_whole_params(
    const ParamGroup& group, Ranks& ranks,
    const std::function<void(const Param& param, const at::Tensor& values)>& take);

}  // namespace mgm
