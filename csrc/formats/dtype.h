// Element types by the names safetensors gives them ("F32", "BF16", "I64", ...): the spelling every
// format in this folder uses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace mgm {

struct Dtype {
  std::string_view name;
  size_t bytes;                    // per element
  std::string_view torch;          // "torch.float32"
  std::string_view torch_storage;  // "torch.FloatStorage"; empty where torch has no such class
};

// All known types; float8 ones are opaque bytes to us.
const std::vector<Dtype>& dtypes();

// Bytes per element; 0 for a name that is not known.
size_t dtype_bytes(std::string_view name);

// Product of a shape and an element size in bytes. Nothing for a negative size or a product that
// does not fit 63 bits.
std::optional<uint64_t> shape_bytes(const std::vector<int64_t>& shape, size_t element_bytes);

}  // namespace mgm
