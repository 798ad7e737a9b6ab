// Attention of a decode step against its definition in double; how keys are cut into splits.
#include "kernels/decode_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace mgm::kernels {
namespace {

// Ranges in another order and one by one.
void one_by_one(int64_t n, int64_t, const RangeBody& body) {
  for (int64_t i = n - 1; i >= 0; --i) body(i, i + 1);
}

template <class T>
std::vector<T> normal(int64_t n, uint64_t key) {
  std::vector<float> x(static_cast<size_t>(n));
  fill_normal(x.data(), x.size(), key, 0, 0, 1);
  std::vector<T> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) store_real(x[i], &out[i]);
  return out;
}

// Rows of a cache; behind a row's end there is NaN, which must not be read.
template <class T>
struct Case {
  Case(int64_t heads, int64_t kv_heads, int64_t width, std::vector<int64_t> at)
      : positions(std::move(at)) {
    a.rows = static_cast<int64_t>(positions.size());
    a.heads = heads, a.kv_heads = kv_heads, a.width = width, a.capacity = 75;
    q = normal<T>(a.rows * heads * width, 1);
    k = normal<T>(a.rows * a.capacity * kv_heads * width, 2);
    v = normal<T>(a.rows * a.capacity * kv_heads * width, 3);
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t row = a.capacity * kv_heads * width;
      const int64_t held = (positions[static_cast<size_t>(r)] + 1) * kv_heads * width;
      for (int64_t i = r * row + held; i < (r + 1) * row; ++i) {
        store_real(std::numeric_limits<float>::quiet_NaN(), &k[static_cast<size_t>(i)]);
        store_real(std::numeric_limits<float>::quiet_NaN(), &v[static_cast<size_t>(i)]);
      }
    }
    a.q = q.data(), a.k = k.data(), a.v = v.data(), a.positions = positions.data();
    a.scale = 0.3f;
  }

  std::vector<T> run(const ParallelFor& parallel = serial_for) {
    std::vector<T> out(q.size());
    a.out = out.data();
    decode_attention_cpu(a, parallel);
    return out;
  }

  std::vector<double> exact() const {
    std::vector<double> out;
    const auto key = [&](int64_t r, int64_t t, int64_t h) {
      return static_cast<size_t>(((r * a.capacity + t) * a.kv_heads + h) * a.width);
    };
    for (int64_t r = 0; r < a.rows; ++r) {
      const int64_t last = positions[static_cast<size_t>(r)];
      const int64_t first = a.window > 0 ? std::max<int64_t>(0, last + 1 - a.window) : 0;
      for (int64_t h = 0; h < a.heads; ++h) {
        const int64_t kv_head = h * a.kv_heads / a.heads;
        const auto query = static_cast<size_t>((r * a.heads + h) * a.width);
        double total = 0;
        std::vector<double> sum(static_cast<size_t>(a.width));
        for (int64_t t = first; t <= last; ++t) {
          double s = 0;
          for (size_t i = 0; i < sum.size(); ++i) {
            s += double(as_real(q[query + i])) * double(as_real(k[key(r, t, kv_head) + i]));
          }
          s *= double(a.scale);
          if (a.softcap > 0) s = double(a.softcap) * std::tanh(s / double(a.softcap));
          total += std::exp(s);
          for (size_t i = 0; i < sum.size(); ++i) {
            sum[i] += std::exp(s) * double(as_real(v[key(r, t, kv_head) + i]));
          }
        }
        for (const double x : sum) out.push_back(x / total);
      }
    }
    return out;
  }

  DecodeAttention<T> a;
  std::vector<T> q, k, v;
  std::vector<int64_t> positions;
};

template <class T>
double error(const std::vector<T>& actual, const std::vector<double>& exact) {
  double off = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double d = double(as_real(actual[i])) - exact[i];
    off += d * d;
    norm += exact[i] * exact[i];
  }
  const double e = std::sqrt(off / norm);
  return std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
}

template <class T>
void expect_exact(double tolerance) {
  for (const auto& [heads, kv_heads] :
       {std::pair<int64_t, int64_t>{1, 1}, {4, 2}, {6, 6}, {7, 1}}) {
    for (const int64_t width : {1, 5, 20, 64, 80, 96, 128, 256}) {
      for (const int64_t window : {0, 1, 33, 1000}) {
        for (const float softcap : {0.0f, 1.3f}) {
          Case<T> c(heads, kv_heads, width, {0, 74, 31, 32, 33});
          c.a.window = window;
          c.a.softcap = softcap;
          EXPECT_LE(error(c.run(), c.exact()), tolerance)
              << heads << '/' << kv_heads << " heads of " << width << ", window " << window
              << ", cap " << softcap;
        }
      }
    }
  }
}

TEST(DecodeAttention, EqualsItsDefinition) {
  expect_exact<float>(1e-6);
  expect_exact<Bf16>(3e-3);  // the result's rounding
}

TEST(DecodeAttention, ThreadsAndOtherRowsChangeNothing) {
  Case<float> c(6, 2, 24, {3, 70, 41});
  const std::vector<float> all = c.run();
  EXPECT_EQ(c.run(one_by_one), all);
  Case<float> first(6, 2, 24, {3, 9, 9});
  const std::vector<float> other = first.run();
  EXPECT_TRUE(std::equal(all.begin(), all.begin() + 6 * 24, other.begin()));
}

TEST(DecodeAttention, WhatIsNotFiniteShows) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Case<float> c(1, 1, 8, {20});
    c.q[3] = 1;  // against a negative one an infinity hides
    c.k[8 * 7 + 3] = bad;
    EXPECT_TRUE(std::isnan(c.run()[0])) << bad;
  }
}

TEST(DecodeAttention, SplitsCoverEveryKeyOnce) {
  for (const int64_t window : {0, 1, 70, 333}) {
    for (int64_t position = 0; position < 400; ++position) {
      const KeyRange seen = seen_keys(position, window);
      ASSERT_EQ(seen.end, position + 1);
      ASSERT_EQ(seen.begin, window == 0 ? 0 : std::max<int64_t>(0, position + 1 - window));
      for (const int64_t splits : {1, 2, 7, 64}) {
        int64_t next = seen.begin, used = 0;
        for (int64_t s = 0; s < splits; ++s) {
          const KeyRange part = keys_of_split(seen, splits, s);
          if (part.begin >= part.end) continue;
          ASSERT_EQ(part.begin, next);
          ASSERT_EQ(used++, s);  // those without keys are the last ones
          next = part.end;
        }
        ASSERT_EQ(next, seen.end);
        const int64_t length = split_length(seen, splits);
        ASSERT_EQ(used, (seen.end - seen.begin + length - 1) / length);
      }
    }
  }
}

TEST(DecodeAttention, SplitsFillTheGpuAndNoMore) {
  EXPECT_EQ(decode_splits(1, 32, 32, 4096, 132), 17);  // 528 blocks wanted, 32 a split
  EXPECT_EQ(decode_splits(32, 32, 32, 4096, 132), 1);
  EXPECT_EQ(decode_splits(1, 32, 8, 4096, 132), 64);
  EXPECT_EQ(decode_splits(1, 8, 1, 100, 132), 4);  // a full row has four times 32 keys
  EXPECT_EQ(decode_splits(1, 8, 1, 1, 132), 1);
  EXPECT_EQ(decode_heads_per_block(32, 32), 1);
  EXPECT_EQ(decode_heads_per_block(28, 4), 4);
  EXPECT_EQ(decode_heads_per_block(12, 4), 4);
  EXPECT_EQ(decode_heads_per_block(8, 4), 2);
}

}  // namespace
}  // namespace mgm::kernels
