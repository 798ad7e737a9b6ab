// Attention. attention() is the one entry for packed token streams (decoder), attention_dense() the
// one for fixed-size batches (vision). Softmax statistics are fp32 (fp64 in float64). Shapes: T
// tokens of all segments, H query heads, K key/value heads (K divides H: grouped queries), D head
// width, B batch, L tokens of one picture.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <optional>
#include <vector>

#include "types/batch.h"

namespace mgm::ops {

// q [T, H, D], k and v [T, K, D] -> [T, H, D]. Attention stays inside the segments of `seq`; with
// `causal` a token sees itself and what is before it in its segment, of that the last `window` with
// a window (> 0, causal only; HF sliding_window). With `softcap` c > 0 scores are c tanh(scores /
// c) before the softmax (HF Gemma2). CUDA, bfloat16 or float16: FlashAttention-2 over all segments
// at once, or cuDNN segment by segment where that is faster and train.deterministic is off (its
// backward does not repeat bit for bit) and there is no window. CPU: flash attention segment by
// segment, so a segment's bits depend on nothing outside it. float64, float32 on CUDA, and soft
// caps: plain products segment by segment, which take memory for H times the square of the longest
// segment.
at::Tensor attention(const at::Tensor& q_THD, const at::Tensor& k_TKD, const at::Tensor& v_TKD,
                     const SeqInfo& seq, bool causal, double scale, int64_t window = 0,
                     double softcap = 0);

// The same for M fresh queries over N cached keys and values of one sequence, the last M of which
// are their own: q [M, H, D]; k, v [N, K, D] with N >= M -> [M, H, D]; row i sees keys 0 .. N - M +
// i. No gradients.
at::Tensor attention_cached(const at::Tensor& q_MHD, const at::Tensor& k_NKD,
                            const at::Tensor& v_NKD, double scale, int64_t window = 0,
                            double softcap = 0);

// How many cached tokens each of R rows holds when one fresh query of each attends.
struct CachedLengths {
  int64_t shortest = 0, longest = 0;  // on the host
  at::Tensor lengths_R;               // int32 [R], on the device, the fresh token included
};

// One fresh query for each of R rows over its own cached keys and values: q [R, H, D]; k, v
// [R, C, K, D], of which row r has lengths[r], its fresh one last -> [R, H, D]. For head widths
// that decode_attention() (ops/decode_attention.h) does not take: rows are masked and read to the
// end of the longest, so what lies behind them must be finite. The host waits for nothing. No
// gradients.
at::Tensor attention_rows(const at::Tensor& q_RHD, const at::Tensor& k_RCKD,
                          const at::Tensor& v_RCKD, const CachedLengths& lengths, double scale,
                          int64_t window = 0, double softcap = 0);

// q, k, v [B, H, L, D] -> [B, H, L, D], every token sees every token. Default scale 1 / sqrt(D).
at::Tensor attention_dense(const at::Tensor& q_BHLD, const at::Tensor& k_BHLD,
                           const at::Tensor& v_BHLD, std::optional<double> scale = std::nullopt);

// Lets recomputation keep attention's results and recompute only what is around it: under a kRecord
// guard attention() stores what its backward needs, under a kReplay guard it takes the stored
// values back in the same order instead of computing them. For attention() alone; attention_dense()
// is not stored.
class AttentionCache {
 public:
  struct Entry {
    at::Tensor out;                 // [T, H, D]
    std::vector<at::Tensor> extra;  // log-sum-exp and what else the backend's backward takes
  };
  void push(Entry entry) { entries_.push_back(std::move(entry)); }
  // The next stored entry; InternalError when the second run attends more often than the first did.
  Entry pop();
  size_t size() const { return entries_.size(); }

 private:
  std::deque<Entry> entries_;
};

enum class AttentionCacheMode { kRecord, kReplay };

// Installs a cache for this thread while the guard lives; guards nest, the inner one rules.
class AttentionCacheGuard {
 public:
  AttentionCacheGuard(AttentionCache& cache, AttentionCacheMode mode);
  ~AttentionCacheGuard();
  AttentionCacheGuard(const AttentionCacheGuard&) = delete;
  AttentionCacheGuard& operator=(const AttentionCacheGuard&) = delete;

 private:
  AttentionCache* previous_cache_;
  AttentionCacheMode previous_mode_;
};

}  // namespace mgm::ops
