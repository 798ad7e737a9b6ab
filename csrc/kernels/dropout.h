// Dropout of rows of a token stream by counters: whether element (row, column) stays is a function
// of the key, the row's sample, its position and the column alone, so a second run of a block,
// other ranks, other micro-batches and a resumed run draw the same, and backward needs no stored
// mask.
//   y = x / (1 - p) where Philox(key, sample, position, column) >= p, else 0
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/philox.h"
#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

// x and y [rows, width]; T is float, Bf16 or, on the CPU, double. y may be x.
template <class T>
struct DropoutRows {
  int64_t rows = 0, width = 0;  // width below 2^22
  const T* x = nullptr;
  T* y = nullptr;
  const int64_t* sample = nullptr;    // [rows]
  const int64_t* position = nullptr;  // [rows], below 2^44
  uint64_t key = 0;
  double p = 0;  // in [0, 1)
};

template <class T>
void dropout_rows_cpu(const DropoutRows<T>& rows, const ParallelFor& parallel);

// Asynchronous on `stream`.
template <class T>
void dropout_rows_cuda(const DropoutRows<T>& rows, CUstream_st* stream);

// Four neighbouring columns share a block of random numbers.
MGM_HOST_DEVICE inline PhiloxBlock dropout_block(uint64_t key, int64_t sample, int64_t position,
                                                 int64_t quad) {
  const uint64_t low = static_cast<uint64_t>(position) << 20 | static_cast<uint64_t>(quad);
  return philox_block(key, static_cast<uint64_t>(sample), low);
}

// An element goes if its number is below this.
inline uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(std::min(p * 4294967296.0, 4294967295.0));
}

}  // namespace mgm::kernels
