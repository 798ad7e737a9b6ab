// Keys and values of one sequence, per decoder layer, allocated once for `capacity` tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mgm {

struct KvCache {
  std::vector<at::Tensor> keys;    // per layer [capacity, kv heads, head width], rotated
  std::vector<at::Tensor> values;  // per layer [capacity, kv heads, head width]
  int64_t length = 0;              // tokens held

  int64_t capacity() const { return keys.empty() ? 0 : keys[0].size(0); }
};

}  // namespace mgm
