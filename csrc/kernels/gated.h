// The gated product of an MLP, act(gate) * up, and its gradients, each in one pass over memory
// (SwiGLU and GeGLU, arXiv 2002.05202; HF LlamaMLP, GemmaMLP). act(gate) is rounded to the element
// type before the product, as operations one by one do. For the CPU there are those operations
// (ops/gated.cpp).
#pragma once

#include <cstdint>

#include "kernels/element.h"

struct CUstream_st;

namespace mgm::kernels {

enum class GateKind { kSilu, kGelu, kGeluTanh };

// T is float or Bf16. gate and up: row r begins at r * row_stride; everything else is contiguous.
template <class T>
struct GatedRows {
  int64_t rows = 0, width = 0;
  GateKind kind = GateKind::kSilu;
  const T *gate = nullptr, *up = nullptr;
  int64_t gate_stride = 0, up_stride = 0;
  T* y = nullptr;          // forward
  const T* d_y = nullptr;  // backward
  T *d_gate = nullptr, *d_up = nullptr;
};

// Both asynchronous on `stream`.
template <class T>
void gated_rows_cuda(const GatedRows<T>& rows, CUstream_st* stream);
template <class T>
void gated_rows_backward_cuda(const GatedRows<T>& rows, CUstream_st* stream);

}  // namespace mgm::kernels
