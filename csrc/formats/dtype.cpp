#include "formats/dtype.h"

namespace mgm {

const std::vector<Dtype>& dtypes() {
  static const std::vector<Dtype> table = {
      {"F64", 8, "torch.float64", "torch.DoubleStorage"},
      {"F32", 4, "torch.float32", "torch.FloatStorage"},
      {"F16", 2, "torch.float16", "torch.HalfStorage"},
      {"BF16", 2, "torch.bfloat16", "torch.BFloat16Storage"},
      {"I64", 8, "torch.int64", "torch.LongStorage"},
      {"I32", 4, "torch.int32", "torch.IntStorage"},
      {"I16", 2, "torch.int16", "torch.ShortStorage"},
      {"I8", 1, "torch.int8", "torch.CharStorage"},
      {"U64", 8, "torch.uint64", ""},
      {"U32", 4, "torch.uint32", ""},
      {"U16", 2, "torch.uint16", ""},
      {"U8", 1, "torch.uint8", "torch.ByteStorage"},
      {"BOOL", 1, "torch.bool", "torch.BoolStorage"},
      {"F8_E4M3", 1, "torch.float8_e4m3fn", ""},
      {"F8_E5M2", 1, "torch.float8_e5m2", ""},
  };
  return table;
}

size_t dtype_bytes(std::string_view name) {
  for (const Dtype& dtype : dtypes()) {
    if (dtype.name == name) return dtype.bytes;
  }
  return 0;
}

std::optional<uint64_t> shape_bytes(const std::vector<int64_t>& shape, size_t element_bytes) {
  int64_t bytes = static_cast<int64_t>(element_bytes);
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

}  // namespace mgm
