// Rotary position embedding of query and key heads in one pass over memory, the rotate-half form of
// HF apply_rotary_pos_emb: of a head's first `rotated` numbers those half of that apart are a pair.
//   y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin;  backward: the same with -sin
// Each product is rounded to the element type before the sum, as operations one by one do. For the
// CPU there are those operations (ops/rotary.cpp).
#pragma once

#include <cstdint>

#include "kernels/element.h"

struct CUstream_st;

namespace mgm::kernels {

// T is float or Bf16. x: row r, head h begins at r * row_stride + h * width; y is contiguous.
template <class T>
struct RotaryHeads {
  int heads = 0;
  int64_t row_stride = 0;
  const T* x = nullptr;
  T* y = nullptr;
};

template <class T>
struct RotaryRows {
  int64_t rows = 0;
  int width = 0, rotated = 0;  // of a head; rotated is even, what is beyond it is copied
  const T *cos = nullptr, *sin = nullptr;  // [rows, rotated], both halves alike
  bool backward = false;
  RotaryHeads<T> q, k;
};

// Asynchronous on `stream`.
template <class T>
void rotate_rows_cuda(const RotaryRows<T>& rows, CUstream_st* stream);

}  // namespace mgm::kernels
