// Dropout of rows of a token stream whose random numbers come from counters (kernels/dropout.h):
// the same bits when a block runs again, on other ranks and after a resume.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mgm::ops {

// What tells the rows of x apart; int64 [T] on x's device.
struct RowCounters {
  at::Tensor sample, position;
};

// x [T, C] float32, bfloat16 or on the CPU float64 -> x / (1 - p) or 0. Gradient: the same mask.
at::Tensor dropout_rows(const at::Tensor& x_TC, const RowCounters& counters, uint64_t key,
                        double p);

}  // namespace mgm::ops
