// Rows to the ranks that need them and back: tokens to the ranks that hold their experts. A
// differentiable all-to-all; every rank takes part whether it has rows or not, in both directions.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "dist/process_group.h"

namespace mgm {

// x: [rows, ...], rows for rank 0, then 1, ...; the result [rows', ...] has the rows from rank 0,
// then 1, .... The gradient goes the other way. Collective, and so is its backward: where a rank's
// result does not enter its loss it must still run backward through it. `group` must outlive the
// graph.
at::Tensor exchange_rows(ProcessGroup& group, const at::Tensor& x, const std::vector<int64_t>& sent,
                         const std::vector<int64_t>& received, const std::string& label);

}  // namespace mgm
