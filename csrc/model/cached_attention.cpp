#include "model/cached_attention.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "ops/decode_attention.h"
#include "types/upload.h"

namespace mgm {
namespace {

// The first slot of every token's row, int64 [T].
at::Tensor row_slots(const SeqInfo& seq, int64_t first, int64_t capacity, bool one_each,
                     at::Device device) {
  const at::TensorOptions options = at::TensorOptions(device).dtype(at::kLong);
  if (one_each) return at::arange(first, first + seq.segments(), options) * capacity;
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < seq.segments(); ++i) {
    const size_t s = static_cast<size_t>(i);
    slots.insert(slots.end(), static_cast<size_t>(seq.offsets[s + 1] - seq.offsets[s]),
                 (first + i) * capacity);
  }
  return upload(at::tensor(slots, at::kLong), device);
}

}  // namespace

CachedAttention::CachedAttention(const CacheRows& rows, const SeqInfo& seq,
                                 const at::Tensor& positions_T)
    : cache_(*rows.cache), first_(rows.first), seq_(seq), positions_T_(positions_T) {
  const int64_t count = seq.segments(), capacity = cache_.capacity();
  MGM_CHECK(first_ >= 0 && count > 0 && first_ + count <= cache_.rows(), "rows ", first_, " + ",
            count, " of a cache of ", cache_.rows());
  bool empty = true, one_each = true;
  lengths_.shortest = capacity;
  for (int64_t i = 0; i < count; ++i) {
    const auto s = static_cast<size_t>(i);
    const int64_t fresh = seq.offsets[s + 1] - seq.offsets[s];
    const int64_t past = cache_.lengths[static_cast<size_t>(first_ + i)];
    MGM_CHECK(past + fresh <= capacity, "a row of ", capacity, " tokens cannot take ", fresh,
              " more after ", past);
    empty = empty && past == 0;
    one_each = one_each && fresh == 1;
    lengths_.shortest = std::min(lengths_.shortest, past + fresh);
    lengths_.longest = std::max(lengths_.longest, past + fresh);
  }
  kind_ = empty ? Kind::kPrompts : one_each ? Kind::kStep : Kind::kContinuation;
  MGM_CHECK(kind_ != Kind::kContinuation || count == 1, "several tokens for each of ", count,
            " rows that are not empty");
  slots_T_ = positions_T + row_slots(seq, first_, capacity, one_each, positions_T.device());
  if (kind_ != Kind::kStep) return;
  const at::Tensor& keys = cache_.keys.front();
  kernel_ = ops::decode_attention_takes(positions_T.device(), keys.scalar_type(), keys.size(3));
  if (!kernel_) lengths_.lengths_R = (positions_T + 1).to(at::kInt);
}

at::Tensor CachedAttention::attend(size_t layer, const at::Tensor& q_TAD, const at::Tensor& k_TKD,
                                   const at::Tensor& v_TKD, double scale, int64_t window,
                                   double softcap) const {
  const at::Tensor& keys = cache_.keys[layer];
  const at::Tensor& values = cache_.values[layer];
  keys.flatten(0, 1).index_copy_(0, slots_T_, k_TKD);
  values.flatten(0, 1).index_copy_(0, slots_T_, v_TKD);
  switch (kind_) {
    case Kind::kPrompts:
      return ops::attention(q_TAD, k_TKD, v_TKD, seq_, /*causal=*/true, scale, window, softcap);
    case Kind::kStep: {
      const at::Tensor k = keys.narrow(0, first_, seq_.segments());
      const at::Tensor v = values.narrow(0, first_, seq_.segments());
      if (kernel_) {
        return ops::decode_attention(q_TAD, k, v, positions_T_, scale, window, softcap);
      }
      return ops::attention_rows(q_TAD, k, v, lengths_, scale, window, softcap);
    }
    case Kind::kContinuation:
      break;
  }
  const int64_t length = lengths_.longest;
  return ops::attention_cached(q_TAD, keys.select(0, first_).narrow(0, 0, length),
                               values.select(0, first_).narrow(0, 0, length), scale, window,
                               softcap);
}

void advance_rows(const CacheRows& rows, const SeqInfo& seq) {
  for (size_t i = 0; i + 1 < seq.offsets.size(); ++i) {
    rows.cache->lengths[static_cast<size_t>(rows.first) + i] += seq.offsets[i + 1] - seq.offsets[i];
  }
}

}  // namespace mgm
