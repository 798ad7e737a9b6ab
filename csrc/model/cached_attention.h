// One forward pass over rows of a KvCache: where fresh keys and values go, and what fresh queries
// see. Three kinds of pass: prompts (empty rows, any lengths: attention stays inside the pass), a
// step (one token for each row), and a continuation (several tokens behind those of one row).
// Shape suffixes: T fresh tokens of all rows, A query heads, K key heads, D head width.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/attention.h"
#include "types/batch.h"
#include "types/kv_cache.h"

namespace mgm {

class CachedAttention {
 public:
  // Segment i of `seq` continues row rows.first + i; positions_T, int64 on the cache's device, are
  // the tokens' places in their rows. `rows` and `seq` must outlive this. An InternalError if a row
  // does not exist or has no room, or the pass is none of the three kinds. What a step does on the
  // device depends on the number of rows and on positions_T, not on lengths that the host knows,
  // wherever the kernel of ops/decode_attention.h takes it.
  CachedAttention(const CacheRows& rows, const SeqInfo& seq, const at::Tensor& positions_T);

  // Appends rotated k and v [T, K, D] to the layer's cache and returns what rotated q [T, A, D]
  // sees: [T, A, D]. Scale, window and softcap as in ops/attention.h. No gradients.
  at::Tensor attend(size_t layer, const at::Tensor& q_TAD, const at::Tensor& k_TKD,
                    const at::Tensor& v_TKD, double scale, int64_t window, double softcap) const;

 private:
  enum class Kind { kPrompts, kStep, kContinuation };

  KvCache& cache_;
  int64_t first_;
  const SeqInfo& seq_;
  Kind kind_ = Kind::kPrompts;
  at::Tensor positions_T_;
  at::Tensor slots_T_;          // int64: places in [rows * capacity]
  bool kernel_ = false;         // a step goes to ops::decode_attention
  ops::CachedLengths lengths_;  // of a step that does not
};

// The rows hold the pass's tokens; called once every layer has attended.
void advance_rows(const CacheRows& rows, const SeqInfo& seq);

}  // namespace mgm
