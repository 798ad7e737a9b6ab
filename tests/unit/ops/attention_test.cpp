#include "ops/attention.h"

#include "base/error.h"
#include "grad_check.h"

namespace mgm::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

SeqInfo segments(const std::vector<int64_t>& lengths) {
  SeqInfo seq;
  for (const int64_t length : lengths) {
    seq.offsets.push_back(seq.offsets.back() + length);
    seq.max_length = std::max(seq.max_length, length);
  }
  return seq;
}

// One masked product over the whole stream, in float64.
at::Tensor literal(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const SeqInfo& seq, bool causal, double scale, int64_t window = 0,
                   double softcap = 0) {
  const int64_t groups = q.size(1) / k.size(1), tokens = q.size(0);
  const at::Tensor all_k = k.repeat_interleave(groups, 1), all_v = v.repeat_interleave(groups, 1);
  at::Tensor mask = at::full({tokens, tokens}, -INFINITY, at::kDouble);
  for (int64_t s = 0; s < seq.segments(); ++s) {
    for (int64_t i = seq.offsets[s]; i < seq.offsets[s + 1]; ++i) {
      const int64_t end = causal ? i + 1 : seq.offsets[s + 1];
      const int64_t begin = window > 0 ? std::max(seq.offsets[s], end - window) : seq.offsets[s];
      mask[i].narrow(0, begin, end - begin).zero_();
    }
  }
  at::Tensor scores = at::einsum("ihd,jhd->hij", {q, all_k}) * scale;
  if (softcap > 0) scores = (scores / softcap).tanh() * softcap;
  return at::einsum("hij,jhd->ihd", {at::softmax(scores + mask, -1), all_v});
}

Tensors random_qkv(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width) {
  return {at::randn({tokens, heads, width}, at::kDouble),
          at::randn({tokens, kv_heads, width}, at::kDouble),
          at::randn({tokens, kv_heads, width}, at::kDouble)};
}

Tensors leaves(const Tensors& from, at::ScalarType dtype) {
  Tensors out;
  for (const at::Tensor& x : from) out.push_back(x.detach().to(dtype).clone().requires_grad_());
  return out;
}

const std::vector<std::vector<int64_t>> kPackings = {
    {1}, {17}, {1, 1, 1}, {5, 1, 7, 2, 13}, {3, 0, 4}, {65, 31}};

TEST(Attention, EqualsTheMaskedProduct) {
  at::manual_seed(1);
  for (const auto& lengths : kPackings) {
    const SeqInfo seq = segments(lengths);
    for (const auto& [heads, kv_heads, width] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {6, 2, 5}, {3, 3, 7}, {4, 1, 16}}) {
      const Tensors base = random_qkv(seq.total(), heads, kv_heads, width);
      const Tensors exact = leaves(base, at::kDouble);
      const at::Tensor d = at::randn_like(base[0]);
      for (const bool causal : {true, false}) {
        const double scale = 0.7;
        const at::Tensor expected = literal(exact[0], exact[1], exact[2], seq, causal, scale);
        const Tensors want = gradients(expected, exact, d);
        // bfloat16: inputs, probabilities and results each carry 2^-9.
        for (const auto& [dtype, tolerance] :
             {std::pair{at::kDouble, 1e-13}, {at::kFloat, 2e-6}, {at::kBFloat16, 2e-2}}) {
          const Tensors x = leaves(base, dtype);
          const at::Tensor actual = attention(x[0], x[1], x[2], seq, causal, scale);
          EXPECT_EQ(actual.scalar_type(), dtype);
          EXPECT_TRUE(near_l2(actual, expected, tolerance));
          const Tensors got = gradients(actual, x, d.to(dtype));
          for (size_t i = 0; i < 3; ++i) {
            // With one key per query dq and dk are 0; in low precision what is left is rounding.
            if (want[i].norm().item<double>() < 1e-9) {
              EXPECT_LT(got[i].norm().item<double>(), 10 * tolerance) << i << ' ' << dtype;
            } else {
              EXPECT_TRUE(near_l2(got[i], want[i], tolerance * 2)) << i << ' ' << dtype;
            }
          }
        }
      }
    }
  }
}

TEST(Attention, WindowsAndSoftCaps) {
  at::manual_seed(5);
  for (const auto& lengths : {std::vector<int64_t>{17}, {5, 1, 7, 0, 13}, {700, 31}}) {
    const SeqInfo seq = segments(lengths);
    const Tensors base = random_qkv(seq.total(), 4, 2, 8);
    const Tensors exact = leaves(base, at::kDouble);
    const at::Tensor d = at::randn_like(base[0]);
    for (const int64_t window : {0, 1, 3, 12, 600, 1000}) {
      for (const double softcap : {0.0, 0.8}) {
        const at::Tensor expected =
            literal(exact[0], exact[1], exact[2], seq, true, 0.7, window, softcap);
        const Tensors want = gradients(expected, exact, d);
        for (const auto& [dtype, tolerance] :
             {std::pair{at::kDouble, 1e-13}, {at::kFloat, 3e-6}, {at::kBFloat16, 2e-2}}) {
          const Tensors x = leaves(base, dtype);
          const at::Tensor actual = attention(x[0], x[1], x[2], seq, true, 0.7, window, softcap);
          EXPECT_TRUE(near_l2(actual, expected, tolerance)) << window << ' ' << softcap;
          const Tensors got = gradients(actual, x, d.to(dtype));
          for (size_t i = 0; i < 3; ++i) {
            if (want[i].norm().item<double>() < 1e-9) {  // a window of one: only v has a gradient
              EXPECT_LT(got[i].norm().item<double>(), 30 * tolerance) << i << ' ' << dtype;
            } else {
              EXPECT_TRUE(near_l2(got[i], want[i], tolerance * 2)) << window << ' ' << i;
            }
          }
        }
      }
    }
  }
}

TEST(Attention, CachedEqualsTheLastRowsOfAll) {
  at::manual_seed(6);
  const Tensors x = random_qkv(29, 4, 2, 8);
  for (const int64_t window : {0, 1, 4, 11, 28, 40}) {
    for (const double softcap : {0.0, 0.8}) {
      const at::Tensor all = literal(x[0], x[1], x[2], segments({29}), true, 0.7, window, softcap);
      for (const int64_t fresh : {1, 2, 7, 28, 29}) {
        const at::Tensor actual =
            attention_cached(x[0].narrow(0, 29 - fresh, fresh), x[1], x[2], 0.7, window, softcap);
        EXPECT_TRUE(near_l2(actual, all.narrow(0, 29 - fresh, fresh), 1e-13))
            << window << ' ' << softcap << ' ' << fresh;
      }
    }
  }
}

// Rows of different and of equal lengths, longer and shorter than the window; what lies behind a
// row's end does not count.
TEST(Attention, RowsOfACacheEqualEachAlone) {
  at::manual_seed(8);
  constexpr int64_t kCapacity = 23, kRows = 5;
  const at::Tensor q = at::randn({kRows, 4, 8}, at::kDouble);
  const at::Tensor k = at::randn({kRows, kCapacity, 2, 8}, at::kDouble);
  const at::Tensor v = at::randn({kRows, kCapacity, 2, 8}, at::kDouble) * 100;
  for (const std::vector<int>& lengths :
       {std::vector<int>{1, 23, 7, 12, 8}, {9, 9, 9, 9, 9}, {1, 1, 1, 1, 1}}) {
    CachedLengths all;
    all.shortest = *std::min_element(lengths.begin(), lengths.end());
    all.longest = *std::max_element(lengths.begin(), lengths.end());
    all.lengths_R = at::tensor(lengths, at::kInt);
    for (const int64_t window : {0, 1, 4, 9, 40}) {
      for (const double softcap : {0.0, 0.8}) {
        const at::Tensor actual = attention_rows(q, k, v, all, 0.7, window, softcap);
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t length = lengths[static_cast<size_t>(r)];
          const at::Tensor alone =
              attention_cached(q.narrow(0, r, 1), k[r].narrow(0, 0, length),
                               v[r].narrow(0, 0, length), 0.7, window, softcap);
          EXPECT_TRUE(near_l2(actual.narrow(0, r, 1), alone, 1e-13))
              << r << ' ' << length << ' ' << window << ' ' << softcap;
        }
      }
    }
  }
}

TEST(Attention, NumericGradient) {
  at::manual_seed(2);
  const SeqInfo seq = segments({3, 1, 5});
  for (const bool causal : {true, false}) {
    check_numeric_gradient(
        [&](const Tensors& x) { return attention(x[0], x[1], x[2], seq, causal, 0.6); },
        random_qkv(9, 4, 2, 3));
  }
  check_numeric_gradient(
      [](const Tensors& x) { return attention_dense(x[0], x[1], x[2]); },
      {at::randn({2, 2, 5, 3}), at::randn({2, 2, 5, 3}), at::randn({2, 2, 5, 3})});
}

TEST(Attention, SegmentsAreAloneToTheBit) {
  at::manual_seed(3);
  const SeqInfo seq = segments({33, 1, 129, 7});
  Tensors x = leaves(random_qkv(seq.total(), 4, 2, 24), at::kFloat);
  const at::Tensor d = at::randn({seq.total(), 4, 24});
  const auto run = [&] {
    const at::Tensor out = attention(x[0], x[1], x[2], seq, true, 0.2);
    Tensors all = gradients(out, x, d);
    all.push_back(out);
    return all;
  };
  const Tensors packed = run();
  for (int64_t s = 0; s < seq.segments(); ++s) {
    const int64_t begin = seq.offsets[s], length = seq.offsets[s + 1] - begin;
    Tensors alone;
    for (const at::Tensor& t : x) {
      alone.push_back(t.detach().narrow(0, begin, length).clone().requires_grad_());
    }
    const at::Tensor out = attention(alone[0], alone[1], alone[2], segments({length}), true, 0.2);
    const Tensors grads = gradients(out, alone, d.narrow(0, begin, length));
    EXPECT_TRUE(at::equal(out, packed[3].narrow(0, begin, length))) << s;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(at::equal(grads[i], packed[i].narrow(0, begin, length))) << s << ' ' << i;
    }
  }
  for (at::Tensor& t : x) {
    at::NoGradGuard guard;
    t.narrow(0, 40, 20).normal_();  // inside the third segment
  }
  const Tensors changed = run();
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(at::equal(changed[i].narrow(0, 0, 34), packed[i].narrow(0, 0, 34)));
    EXPECT_TRUE(at::equal(changed[i].narrow(0, 163, 7), packed[i].narrow(0, 163, 7)));
    EXPECT_FALSE(at::equal(changed[i].narrow(0, 34, 129), packed[i].narrow(0, 34, 129)));
  }
  // Causal: what comes later changes nothing before it.
  EXPECT_TRUE(at::equal(changed[3].narrow(0, 34, 6), packed[3].narrow(0, 34, 6)));
}

TEST(Attention, EmptyStream) {
  const at::Tensor none = at::zeros({0, 2, 4});
  EXPECT_EQ(attention(none, none, none, SeqInfo{}, true, 1).sizes(), at::IntArrayRef({0, 2, 4}));
}

TEST(Attention, RefusesWhatDoesNotFit) {
  const at::Tensor q = at::zeros({4, 6, 2}), k = at::zeros({4, 4, 2});
  EXPECT_THROW(attention(q, k, k, segments({4}), true, 1), InternalError);
  EXPECT_THROW(attention(q, q, q, segments({3}), true, 1), InternalError);
}

TEST(AttentionCache, ReplayHandsStoredResultsBack) {
  at::manual_seed(4);
  const SeqInfo seq = segments({5, 9});
  const Tensors x = leaves(random_qkv(14, 4, 2, 8), at::kFloat);
  const at::Tensor d = at::randn({14, 4, 8});
  const auto two_layers = [&](const Tensors& t) {
    const at::Tensor first = attention(t[0], t[1], t[2], seq, true, 0.3);
    return attention(first, t[1], t[2], seq, true, 0.3);
  };
  const Tensors want = gradients(two_layers(x), x, d);

  AttentionCache cache;
  at::Tensor recorded;
  {
    const AttentionCacheGuard guard(cache, AttentionCacheMode::kRecord);
    recorded = two_layers(x);
    AttentionCache inner;
    {
      const AttentionCacheGuard nested(inner, AttentionCacheMode::kRecord);
      two_layers(x);
    }
    EXPECT_EQ(inner.size(), 2u);
  }
  EXPECT_EQ(cache.size(), 2u);
  two_layers(x);  // outside the guard nothing is stored
  EXPECT_EQ(cache.size(), 2u);

  const AttentionCacheGuard guard(cache, AttentionCacheMode::kReplay);
  const at::Tensor replayed = two_layers(x);
  EXPECT_EQ(cache.size(), 0u);
  EXPECT_EQ(replayed.data_ptr(), recorded.data_ptr());  // not computed again
  const Tensors got = gradients(replayed, x, d);
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(got[i], want[i])) << i;
  EXPECT_THROW(two_layers(x), InternalError);
}

// The cache must not own the graph that owns the cache (recomputation keeps it in saved-tensor
// hooks).
TEST(AttentionCache, StoredOutputsHaveNoHistory) {
  const Tensors x = leaves(random_qkv(3, 2, 2, 4), at::kFloat);
  AttentionCache cache;
  const AttentionCacheGuard guard(cache, AttentionCacheMode::kRecord);
  EXPECT_TRUE(attention(x[0], x[1], x[2], segments({3}), true, 1).requires_grad());
  const AttentionCache::Entry entry = cache.pop();
  EXPECT_FALSE(entry.out.requires_grad());
  EXPECT_FALSE(entry.out.grad_fn());
}

}  // namespace
}  // namespace mgm::ops
