// Sum of squares of a flat buffer, for gradient norms: squares and sums in fp64, always in the same
// order. Not finite exactly when an element is not (fp32 squares cannot overflow fp64), so it
// doubles as the finite check.
#pragma once

#include <cstdint>

#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

// T: float or Bf16. The same bits whatever `parallel` does.
template <class T>
double sum_squares_cpu(const T* x, int64_t n, const ParallelFor& parallel);

inline constexpr int64_t kSumSquaresScratch = 1024;  // doubles

// Writes the sum to *out on the device. Asynchronous on `stream`.
template <class T>
void sum_squares_cuda(const T* x, int64_t n, double* scratch, double* out, CUstream_st* stream);

}  // namespace mgm::kernels
