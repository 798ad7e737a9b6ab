// The loop that CPU kernels are given (kernels/parallel.h): torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>
#include <functional>

namespace mgm {

inline void on_threads(int64_t n, int64_t grain,
                       const std::function<void(int64_t begin, int64_t end)>& body) {
  at::parallel_for(0, n, grain, body);
}

}  // namespace mgm
