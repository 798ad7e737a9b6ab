// A matrix held in fewer bits (kernels/quantize.h). What works on it: ops/packed_weight.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace mgm {

enum class WeightFormat {
  kDense,  // its elements, in the dtype of the model
  kNf4,    // 4-bit NormalFloat, doubly quantised
  kInt8    // 8 bits and a scale per row
};

// All tensors are on one device.
struct PackedWeight {
  WeightFormat format = WeightFormat::kDense;
  int64_t out = 0, in = 0;  // [out, in]
  at::Tensor codes;         // nf4: uint8 [ceil(out in / 2)]; int8: int8 [out, in]
  at::Tensor maxima;        // nf4: uint8 [ceil(out in / 64)], codes of the blocks' maxima
  at::Tensor scales;        // fp32; nf4: [ceil(maxima / 256)]; int8: [out]
  double offset = 0;        // nf4: the maxima's mean, an fp32 number

  bool defined() const { return codes.defined(); }
  int64_t nbytes() const;
};

// Bytes of a matrix [rows, numel / rows] that is packed.
int64_t packed_bytes(WeightFormat format, int64_t numel, int64_t rows);

}  // namespace mgm
