#include "ops/attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace mgm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Entry = AttentionCache::Entry;

thread_local AttentionCache* t_cache = nullptr;
thread_local AttentionCacheMode t_mode = AttentionCacheMode::kRecord;

struct Call {
  std::vector<int64_t> offsets;
  at::Tensor cu_seqlens;
  int64_t max_length;
  bool causal;
  double scale;
  int64_t window;  // 0: none
  double softcap;  // 0: none
};

struct Gradients {
  at::Tensor q, k, v;
};

enum class Backend { kFlashVarlen, kCudnn, kCpu, kMath };

// cuDNN is up to 1.8 times faster on long segments, but is called once per segment and builds a
// plan for every new length (tens of ms), so it must have enough to do.
constexpr int64_t kCudnnSegment = 4096;
constexpr int64_t kCudnnSingleSegment = 1024;

// What FlashAttention of ATen takes, soft caps aside.
bool flash_takes(const at::Tensor& q) {
  const int64_t width = q.size(2);
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return q.is_cuda() && half && width % 8 == 0 && width <= 256;
}

Backend choose_backend(const at::Tensor& q, const Call& call) {
  // No fused kernel of ATen caps scores.
  if (q.scalar_type() == at::kDouble || call.softcap > 0) return Backend::kMath;
  if (!q.is_cuda()) return Backend::kCpu;
  if (!flash_takes(q)) return Backend::kMath;
  const int64_t width = q.size(2);
  if (at::globalContext().deterministicAlgorithms() || width > 128 || call.window > 0) {
    return Backend::kFlashVarlen;
  }
  int64_t shortest = call.max_length;
  for (size_t i = 1; i < call.offsets.size(); ++i) {
    shortest = std::min(shortest, call.offsets[i] - call.offsets[i - 1]);
  }
  const int64_t enough = call.offsets.size() == 2 ? kCudnnSingleSegment : kCudnnSegment;
  return shortest >= enough ? Backend::kCudnn : Backend::kFlashVarlen;
}

// Which of n keys the last m of n positions see: bool [m, n].
at::Tensor visible_keys(int64_t m, int64_t n, int64_t window, const at::TensorOptions& options) {
  at::Tensor mask = at::ones({m, n}, options.dtype(at::kBool)).tril_(n - m);
  return window > 0 ? mask.triu_(n - m - window + 1) : mask;
}

// ---- all segments at once -----------------------------------------------------------------------

// FlashAttention counts the keys on each side of a query's own.
std::optional<int64_t> left_window(int64_t window) {
  return window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt;
}
std::optional<int64_t> right_window(int64_t window) {
  return window > 0 ? std::optional<int64_t>(0) : std::nullopt;
}

Entry flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Call& c) {
  auto [out, lse, rng, unused, debug] = at::_flash_attention_forward(
      q, k, v, c.cu_seqlens, c.cu_seqlens, c.max_length, c.max_length, /*dropout_p=*/0, c.causal,
      /*return_debug_mask=*/false, c.scale, left_window(c.window), right_window(c.window));
  return {out, {lse, rng, unused}};
}

Gradients flash_backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k,
                         const at::Tensor& v, const Entry& e, const Call& c) {
  auto [dq, dk, dv] = at::_flash_attention_backward(
      d_out, q, k, v, e.out, e.extra[0], c.cu_seqlens, c.cu_seqlens, c.max_length, c.max_length,
      /*dropout_p=*/0, c.causal, e.extra[1], e.extra[2], c.scale, left_window(c.window),
      right_window(c.window));
  return {dq, dk, dv};
}

// ---- segment by segment -------------------------------------------------------------------------

// Rows of one segment as [1, heads, L, D].
at::Tensor segment(const at::Tensor& x_THD, const Call& c, size_t i) {
  return x_THD.narrow(0, c.offsets[i], c.offsets[i + 1] - c.offsets[i])
      .transpose(0, 1)
      .unsqueeze(0);
}
at::Tensor expand_heads(const at::Tensor& x_1KLD, int64_t heads) {
  const int64_t groups = heads / x_1KLD.size(1);
  return groups == 1 ? x_1KLD : x_1KLD.repeat_interleave(groups, 1);
}
at::Tensor sum_groups(const at::Tensor& d_1HLD, int64_t kv_heads) {
  return d_1HLD.size(1) == kv_heads ? d_1HLD : d_1HLD.unflatten(1, {kv_heads, -1}).sum(2);
}

struct SegmentOps {
  // q [1, H, L, D], k, v [1, K, L, D] -> out [1, H, L, D] and `extras` further tensors.
  Entry (*forward)(const at::Tensor&, const at::Tensor&, const at::Tensor&, const Call&);
  Gradients (*backward)(const at::Tensor& d_out, const at::Tensor&, const at::Tensor&,
                        const at::Tensor&, const Entry&, const Call&);
  size_t extras;
};

// The additive form of a window, where this segment is longer than it.
std::optional<at::Tensor> window_mask(const at::Tensor& q_1HLD, const Call& c) {
  const int64_t length = q_1HLD.size(2);
  if (c.window == 0 || c.window >= length) return std::nullopt;
  return at::zeros({length, length}, q_1HLD.options())
      .masked_fill_(visible_keys(length, length, c.window, q_1HLD.options()).logical_not_(),
                    -std::numeric_limits<double>::infinity());
}

const SegmentOps kCpuOps = {
    [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Call& c) -> Entry {
      const auto mask = window_mask(q, c);
      auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(
          q, expand_heads(k, q.size(1)), expand_heads(v, q.size(1)), /*dropout_p=*/0,
          c.causal && !mask, mask, c.scale);
      return {out, {lse}};
    },
    [](const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const Entry& e, const Call& c) -> Gradients {
      const auto mask = window_mask(q, c);
      auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          d_out, q, expand_heads(k, q.size(1)), expand_heads(v, q.size(1)), e.out, e.extra[0],
          /*dropout_p=*/0, c.causal && !mask, mask, c.scale);
      return {dq, sum_groups(dk, k.size(1)), sum_groups(dv, k.size(1))};
    },
    1};

const SegmentOps kCudnnOps = {
    [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Call& c) -> Entry {
      auto [out, lse, cu_q, cu_k, max_q, max_k, seed, offset, debug] =
          at::_scaled_dot_product_cudnn_attention(q, k, v, /*attn_bias=*/{},
                                                  /*compute_log_sumexp=*/true, /*dropout_p=*/0,
                                                  c.causal, /*return_debug_mask=*/false, c.scale);
      return {out, {lse, seed, offset}};
    },
    [](const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const Entry& e, const Call& c) -> Gradients {
      auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
          d_out, q, k, v, e.out, e.extra[0], e.extra[1], e.extra[2], /*attn_bias=*/{},
          /*cum_seq_q=*/{}, /*cum_seq_k=*/{}, q.size(2), k.size(2), /*dropout_p=*/0, c.causal,
          c.scale);
      return {dq, dk, dv};
    },
    3};

// Scores before the softmax, fp32 at least, capped but not masked.
at::Tensor math_scores(const at::Tensor& q, const at::Tensor& k, double scale, double softcap) {
  at::Tensor s = at::matmul(q, k.transpose(2, 3));
  if (s.scalar_type() != at::kDouble) s = s.to(at::kFloat);
  s.mul_(scale);
  return softcap > 0 ? s.div_(softcap).tanh_().mul_(softcap) : s;
}

// In place, like all of the math path: scores are the largest tensors there are.
at::Tensor hide_(at::Tensor scores, int64_t window) {
  const at::Tensor seen = visible_keys(scores.size(2), scores.size(3), window, scores.options());
  return scores.masked_fill_(seen.logical_not(), -std::numeric_limits<double>::infinity());
}

const SegmentOps kMathOps = {
    [](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Call& c) -> Entry {
      at::Tensor s = math_scores(q, expand_heads(k, q.size(1)), c.scale, c.softcap);
      if (c.causal) s = hide_(s, c.window);
      const at::Tensor lse = s.logsumexp(-1, /*keepdim=*/true);
      const at::Tensor p = s.sub_(lse).exp_().to(q.scalar_type());
      return {at::matmul(p, expand_heads(v, q.size(1))), {lse}};
    },
    [](const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
       const Entry& e, const Call& c) -> Gradients {
      const at::Tensor all_k = expand_heads(k, q.size(1)), all_v = expand_heads(v, q.size(1));
      at::Tensor s = math_scores(q, all_k, c.scale, c.softcap);
      at::Tensor p = c.softcap > 0 ? s.clone() : s;
      if (c.causal) p = hide_(p, c.window);
      p.sub_(e.extra[0]).exp_();
      at::Tensor ds = at::matmul(d_out, all_v.transpose(2, 3));
      ds.sub_((d_out * e.out).sum(-1, /*keepdim=*/true));
      ds = (p * ds).mul_(c.scale);
      if (c.softcap > 0) ds.mul_(s.div_(c.softcap).square_().neg_().add_(1));  // of tanh
      const at::Tensor ds_q = ds.to(q.scalar_type());
      return {at::matmul(ds_q, all_k), sum_groups(at::matmul(ds_q.transpose(2, 3), q), k.size(1)),
              sum_groups(at::matmul(p.to(q.scalar_type()).transpose(2, 3), d_out), k.size(1))};
    },
    1};

const SegmentOps& segment_ops(Backend backend) {
  if (backend == Backend::kCudnn) return kCudnnOps;
  return backend == Backend::kCpu ? kCpuOps : kMathOps;
}

bool empty_segment(const Call& c, size_t i) { return c.offsets[i] == c.offsets[i + 1]; }

Entry segments_forward(const SegmentOps& ops, const at::Tensor& q, const at::Tensor& k,
                       const at::Tensor& v, const Call& c) {
  Entry all{at::empty_like(q, at::MemoryFormat::Contiguous), {}};
  for (size_t i = 0; i + 1 < c.offsets.size(); ++i) {
    if (empty_segment(c, i)) continue;
    Entry one = ops.forward(segment(q, c, i), segment(k, c, i), segment(v, c, i), c);
    const bool only = c.offsets[i + 1] - c.offsets[i] == q.size(0);
    if (only) {
      all.out = one.out.squeeze(0).transpose(0, 1).contiguous();
    } else {
      segment(all.out, c, i).copy_(one.out);
    }
    MGM_CHECK(one.extra.size() == ops.extras, one.extra.size());
    all.extra.insert(all.extra.end(), one.extra.begin(), one.extra.end());
  }
  return all;
}

Gradients segments_backward(const SegmentOps& ops, const at::Tensor& d_out, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const Entry& e,
                            const Call& c) {
  const auto contiguous = at::MemoryFormat::Contiguous;
  Gradients all{at::empty_like(q, contiguous), at::empty_like(k, contiguous),
                at::empty_like(v, contiguous)};
  auto extra = e.extra.begin();
  for (size_t i = 0; i + 1 < c.offsets.size(); ++i) {
    if (empty_segment(c, i)) continue;
    const auto next = extra + static_cast<std::ptrdiff_t>(ops.extras);
    const Entry one{segment(e.out, c, i), {extra, next}};
    extra = next;
    const Gradients d = ops.backward(segment(d_out, c, i), segment(q, c, i), segment(k, c, i),
                                     segment(v, c, i), one, c);
    segment(all.q, c, i).copy_(d.q);
    segment(all.k, c, i).copy_(d.k);
    segment(all.v, c, i).copy_(d.v);
  }
  return all;
}

// ---- the autograd function ----------------------------------------------------------------------

Entry compute(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Call& call) {
  const Backend backend = choose_backend(q, call);
  if (backend == Backend::kFlashVarlen) return flash_forward(q, k, v, call);
  return segments_forward(segment_ops(backend), q, k, v, call);
}

struct PackedAttention : torch::autograd::Function<PackedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const Call& call) {
    Entry entry;
    if (t_cache && t_mode == AttentionCacheMode::kReplay) {
      entry = t_cache->pop();
      MGM_CHECK(entry.out.sizes() == q.sizes(), "stored attention is ", entry.out.sizes(),
                ", the second run asks for ", q.sizes());
    } else {
      entry = compute(q, k, v, call);
      // An alias: the output itself gets this node as its history, which must not end up in the
      // cache.
      if (t_cache) t_cache->push({entry.out.detach(), entry.extra});
    }
    variable_list saved = {q, k, v, call.cu_seqlens, entry.out};
    saved.insert(saved.end(), entry.extra.begin(), entry.extra.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["offsets"] = call.offsets;
    ctx->saved_data["max_length"] = call.max_length;
    ctx->saved_data["causal"] = call.causal;
    ctx->saved_data["scale"] = call.scale;
    ctx->saved_data["window"] = call.window;
    ctx->saved_data["softcap"] = call.softcap;
    ctx->saved_data["backend"] = static_cast<int64_t>(choose_backend(q, call));
    return entry.out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const Call call{ctx->saved_data["offsets"].toIntVector(), saved[3],
                    ctx->saved_data["max_length"].toInt(),    ctx->saved_data["causal"].toBool(),
                    ctx->saved_data["scale"].toDouble(),      ctx->saved_data["window"].toInt(),
                    ctx->saved_data["softcap"].toDouble()};
    const auto backend = static_cast<Backend>(ctx->saved_data["backend"].toInt());
    const Entry entry{saved[4], {saved.begin() + 5, saved.end()}};
    const at::Tensor d_out = gradients[0].contiguous();
    const Gradients d = backend == Backend::kFlashVarlen
                            ? flash_backward(d_out, saved[0], saved[1], saved[2], entry, call)
                            : segments_backward(segment_ops(backend), d_out, saved[0], saved[1],
                                                saved[2], entry, call);
    return {d.q, d.k, d.v, at::Tensor()};
  }
};

}  // namespace

AttentionCache::Entry AttentionCache::pop() {
  MGM_CHECK(!entries_.empty(),
            "no stored attention is left: the block attends more often when run ",
            "again than it did in forward");
  Entry entry = std::move(entries_.front());
  entries_.pop_front();
  return entry;
}

AttentionCacheGuard::AttentionCacheGuard(AttentionCache& cache, AttentionCacheMode mode)
    : previous_cache_(t_cache), previous_mode_(t_mode) {
  t_cache = &cache;
  t_mode = mode;
}

AttentionCacheGuard::~AttentionCacheGuard() {
  t_cache = previous_cache_;
  t_mode = previous_mode_;
}

at::Tensor attention(const at::Tensor& q_THD, const at::Tensor& k_TKD, const at::Tensor& v_TKD,
                     const SeqInfo& seq, bool causal, double scale, int64_t window,
                     double softcap) {
  MGM_CHECK(window >= 0 && (causal || window == 0), "a window of ", window, " without causal");
  MGM_CHECK(q_THD.dim() == 3 && k_TKD.dim() == 3 && k_TKD.sizes() == v_TKD.sizes() &&
                q_THD.size(0) == k_TKD.size(0) && q_THD.size(2) == k_TKD.size(2) &&
                k_TKD.size(1) > 0 && q_THD.size(1) % k_TKD.size(1) == 0,
            "attention takes q [T, H, D], k and v [T, K, D] with K dividing H; got ", q_THD.sizes(),
            ", ", k_TKD.sizes(), ", ", v_TKD.sizes());
  MGM_CHECK(seq.total() == q_THD.size(0), "segments cover ", seq.total(), " tokens, q has ",
            q_THD.size(0));
  MGM_CHECK(!q_THD.is_cuda() || (seq.cu_seqlens.defined() && seq.cu_seqlens.is_cuda()),
            "attention on a GPU needs cu_seqlens there");
  if (q_THD.size(0) == 0) return at::zeros_like(q_THD);
  if (window >= seq.max_length) window = 0;
  return PackedAttention::apply(
      q_THD, k_TKD, v_TKD,
      Call{seq.offsets, seq.cu_seqlens, seq.max_length, causal, scale, window, softcap});
}

at::Tensor attention_cached(const at::Tensor& q_MHD, const at::Tensor& k_NKD,
                            const at::Tensor& v_NKD, double scale, int64_t window, double softcap) {
  const auto heads_first = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  const auto rows_first = [](const at::Tensor& x) { return x.squeeze(0).transpose(0, 1); };
  const int64_t m = q_MHD.size(0);
  // Keys that no query sees are left out.
  const int64_t n = window > 0 ? std::min(k_NKD.size(0), window + m - 1) : k_NKD.size(0);
  const int64_t first = k_NKD.size(0) - n;
  const at::Tensor q = heads_first(q_MHD), k = heads_first(k_NKD.narrow(0, first, n)),
                   v = heads_first(v_NKD.narrow(0, first, n));
  if (softcap > 0) {
    const at::Tensor s = hide_(math_scores(q, expand_heads(k, q.size(1)), scale, softcap), window);
    const at::Tensor p = at::softmax(s, -1).to(q.scalar_type());
    return rows_first(at::matmul(p, expand_heads(v, q.size(1))));
  }
  const bool windowed = window > 0 && window < n;
  std::optional<at::Tensor> mask;
  if (m > 1 && (n > m || windowed)) mask = visible_keys(m, n, window, q.options());
  return rows_first(at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0,
                                                     /*is_causal=*/m > 1 && !mask, scale,
                                                     /*enable_gqa=*/true));
}

namespace {

// Which of the keys first .. first + n - 1 each row's query sees: bool [R, 1, 1, n].
at::Tensor visible_in_rows(const at::Tensor& lengths_R, int64_t first, int64_t n, int64_t window) {
  const at::Tensor key = at::arange(first, first + n, lengths_R.options());
  const at::Tensor length = lengths_R.view({-1, 1, 1, 1});
  const at::Tensor seen = key.lt(length);
  return window > 0 ? seen.logical_and(key.ge(length - window)) : seen;
}

}  // namespace

at::Tensor attention_rows(const at::Tensor& q_RHD, const at::Tensor& k_RCKD,
                          const at::Tensor& v_RCKD, const CachedLengths& lengths, double scale,
                          int64_t window, double softcap) {
  MGM_CHECK(q_RHD.dim() == 3 && k_RCKD.dim() == 4 && k_RCKD.sizes() == v_RCKD.sizes() &&
                q_RHD.size(0) == k_RCKD.size(0) && lengths.longest <= k_RCKD.size(1),
            "attention_rows takes q [R, H, D], k and v [R, C, K, D]; got ", q_RHD.sizes(), ", ",
            k_RCKD.sizes(), ", ", v_RCKD.sizes(), " with up to ", lengths.longest, " keys");
  if (window >= lengths.longest) window = 0;
  const bool even = lengths.shortest == lengths.longest;
  // Keys that no query sees are left out.
  const int64_t first = window > 0 ? std::max<int64_t>(0, lengths.shortest - window) : 0;
  const int64_t n = lengths.longest - first;
  const auto heads_first = [&](const at::Tensor& x) {
    return x.narrow(1, first, n).transpose(1, 2);
  };
  const at::Tensor q = q_RHD.unsqueeze(2), k = heads_first(k_RCKD), v = heads_first(v_RCKD);
  std::optional<at::Tensor> mask;
  if (!even) mask = visible_in_rows(lengths.lengths_R, first, n, window);
  if (softcap > 0) {
    at::Tensor s = math_scores(q, expand_heads(k, q.size(1)), scale, softcap);
    if (mask) s.masked_fill_(mask->logical_not(), -std::numeric_limits<double>::infinity());
    const at::Tensor p = at::softmax(s, -1).to(q.scalar_type());
    return at::matmul(p, expand_heads(v, q.size(1))).squeeze(2);
  }
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, /*is_causal=*/false,
                                          scale, /*enable_gqa=*/true)
      .squeeze(2);
}

at::Tensor attention_dense(const at::Tensor& q_BHLD, const at::Tensor& k_BHLD,
                           const at::Tensor& v_BHLD, std::optional<double> scale) {
  return at::scaled_dot_product_attention(q_BHLD, k_BHLD, v_BHLD, /*attn_mask=*/{},
                                          /*dropout_p=*/0, /*is_causal=*/false, scale);
}

}  // namespace mgm::ops
