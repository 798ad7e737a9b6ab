// The element types of GGUF tensors. Quantised ones store blocks of elements of a row: scales and
// packed integers. Source: ggml-common.h (block_q4_0, ...), ggml-quants.c (dequantize_row_*).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace mgm {

struct GgufType {
  uint32_t id;             // ggml_type
  std::string_view name;   // "Q4_K"
  uint32_t block;          // elements of a block
  uint32_t bytes;          // of a block
  std::string_view dtype;  // formats/dtype.h; empty for quantised ones
};

// Null for an id that is not known.
const GgufType* gguf_type(uint32_t id);

// Whether dequantise() takes it.
bool can_dequantise(const GgufType& type);

// `elements` values (a multiple of the block) as fp32, the same bits as ggml's reference: F32, F16,
// BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K. Throws InternalError for another type.
void dequantise(const GgufType& type, const uint8_t* blocks, size_t elements, float* out);

}  // namespace mgm
