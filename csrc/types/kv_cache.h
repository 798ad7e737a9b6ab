// Keys and values of several sequences, a row each, per decoder layer; allocated once. A row fills
// from the front; what lies behind its length is finite and means nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace mgm {

struct KvCache {
  std::vector<at::Tensor> keys;    // per layer [rows, capacity, kv heads, head width], rotated
  std::vector<at::Tensor> values;  // per layer, of the same shape
  // What rotates position p of a layer: row p of [capacity, 1, rotated width]. Layers of one device
  // share theirs.
  std::vector<at::Tensor> cos, sin;
  std::vector<int64_t> lengths;  // tokens held by each row

  int64_t rows() const { return static_cast<int64_t>(lengths.size()); }
  int64_t capacity() const { return keys.empty() ? 0 : keys[0].size(1); }  // tokens of a row
  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const at::Tensor& layer : keys) sum += 2 * layer.nbytes();
    return sum;
  }
};

// Where a batch continues: its segment i belongs to row first + i.
struct CacheRows {
  KvCache* cache = nullptr;  // null: the batch stands alone
  int64_t first = 0;
};

}  // namespace mgm
