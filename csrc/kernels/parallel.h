// How CPU kernels use threads without knowing a thread pool: the caller passes a loop.
#pragma once

#include <cstdint>
#include <functional>

namespace mgm::kernels {

using RangeBody = std::function<void(int64_t begin, int64_t end)>;

// Calls body on disjoint ranges that cover [0, n), possibly from several threads; fewer than
// `grain` of the kernel's units are not worth one. Kernels give the same bits however the range is
// cut.
using ParallelFor = std::function<void(int64_t n, int64_t grain, const RangeBody& body)>;

inline void serial_for(int64_t n, int64_t, const RangeBody& body) {
  if (n > 0) body(0, n);
}

}  // namespace mgm::kernels
