// Attention of one fresh query for each of several rows over the row's cached keys and values, the
// fresh one's own among them: the step of token-by-token decoding. How many keys a row has is read
// where the data is, so that a launch depends on no length. Query heads share key heads in groups.
// Scores, softmax and sums are fp32. The CUDA kernel cuts a row's keys into `splits` parts that run
// side by side and adds them up in a fixed order (flash decoding): the same bits every time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/philox.h"
#include "kernels/element.h"
#include "kernels/parallel.h"

struct CUstream_st;

namespace mgm::kernels {

// T is float or Bf16.
template <class T>
struct DecodeAttention {
  int64_t rows = 0, heads = 0, kv_heads = 0;  // kv_heads divides heads
  int64_t width = 0;                          // of a head
  int64_t capacity = 0;                       // keys there is room for in a row
  const T* q = nullptr;                       // [rows, heads, width]
  const T *k = nullptr, *v = nullptr;         // [rows, capacity, kv_heads, width]
  const int64_t* positions = nullptr;  // [rows]: of the fresh token; keys 0 .. this are there
  float scale = 1;
  int64_t window = 0;  // the last so many keys are seen; 0: all
  float softcap = 0;   // c: scores are c tanh(scores / c); 0: as they are
  T* out = nullptr;    // [rows, heads, width]
  // CUDA only; both buffers may be null with one split.
  int64_t splits = 1;
  float* partial = nullptr;  // [rows, heads, splits, width]
  float* stats = nullptr;    // [rows, heads, splits, 2]: largest score, sum of exponentials
};

struct KeyRange {
  int64_t begin = 0, end = 0;
};

MGM_HOST_DEVICE inline KeyRange seen_keys(int64_t position, int64_t window) {
  const int64_t end = position + 1;
  return {window > 0 && window < end ? end - window : 0, end};
}

inline constexpr int64_t kSplitGrain = 32;  // keys of a split are a multiple, the last one's aside

// Keys of one split of `seen`; of the last ones it may have none.
MGM_HOST_DEVICE inline int64_t split_length(const KeyRange& seen, int64_t splits) {
  const int64_t each = (seen.end - seen.begin + splits - 1) / splits;
  return (each + kSplitGrain - 1) / kSplitGrain * kSplitGrain;
}
MGM_HOST_DEVICE inline KeyRange keys_of_split(const KeyRange& seen, int64_t splits, int64_t split) {
  const int64_t length = split_length(seen, splits);
  const int64_t begin = seen.begin + split * length, end = begin + length;
  return {begin, end < seen.end ? end : seen.end};
}

// Query heads that a thread block serves: those of a group read its keys once.
inline int64_t decode_heads_per_block(int64_t heads, int64_t kv_heads) {
  const int64_t group = heads / kv_heads;
  return group >= 3 ? 4 : group;
}

// Enough thread blocks for `multiprocessors`, and no more parts than a full row is worth.
inline int64_t decode_splits(int64_t rows, int64_t heads, int64_t kv_heads, int64_t capacity,
                             int64_t multiprocessors) {
  constexpr int64_t kMost = 64, kBlocksEach = 4;
  const int64_t per_block = decode_heads_per_block(heads, kv_heads);
  const int64_t blocks = rows * kv_heads * ((heads / kv_heads + per_block - 1) / per_block);
  const int64_t wanted =
      (kBlocksEach * multiprocessors + blocks - 1) / std::max<int64_t>(blocks, 1);
  const int64_t useful = (capacity + kSplitGrain - 1) / kSplitGrain;
  return std::clamp<int64_t>(std::min(wanted, useful), 1, kMost);
}

// What the CUDA kernel takes.
inline bool decode_width_fits(int64_t width) { return width > 0 && width <= 256 && width % 8 == 0; }

// Any width. The same bits whatever `parallel` does, and whatever the other rows are.
template <class T>
void decode_attention_cpu(const DecodeAttention<T>& a, const ParallelFor& parallel);

// Asynchronous on `stream`. q, k and v begin at multiples of 16 bytes; at most 65535 rows.
template <class T>
void decode_attention_cuda(const DecodeAttention<T>& a, CUstream_st* stream);

}  // namespace mgm::kernels
