// Random initialisation as a pure function of (seed, parameter name, element index): the value of a
// weight does not depend on sharding, order or device.
#pragma once

#include <ATen/core/Tensor.h>

#include "types/param.h"

namespace mgm {

// Fills the contiguous CPU float tensor `out` with elements [first, first + out.numel()) of the
// parameter.
void init_range(const ParamSpec& spec, uint64_t seed, int64_t first, at::Tensor& out);

}  // namespace mgm
