#include "types/packed_weight.h"

#include "base/error.h"

namespace mgm {

int64_t PackedWeight::nbytes() const {
  int64_t sum = 0;
  for (const at::Tensor* tensor : {&codes, &maxima, &scales}) {
    if (tensor->defined()) sum += static_cast<int64_t>(tensor->nbytes());
  }
  return sum;
}

int64_t packed_bytes(WeightFormat format, int64_t numel, int64_t rows) {
  constexpr int64_t kFp32 = 4, kBlock = 64, kScale = 256;
  const auto parts = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
  const int64_t maxima = parts(numel, kBlock);
  switch (format) {
    case WeightFormat::kNf4:
      return parts(numel, 2) + maxima + kFp32 * parts(maxima, kScale);
    case WeightFormat::kInt8:
      return numel + kFp32 * rows;
    case WeightFormat::kDense:
      break;
  }
  throw InternalError("a dense weight is not packed");
}

}  // namespace mgm
