// The attention of a decode step against the general path, row by row in double and all at once.
#include "ops/decode_attention.h"

#include "base/error.h"
#include "grad_check.h"
#include "ops/attention.h"

namespace mgm::ops {
namespace {

constexpr int64_t kCapacity = 61, kRows = 4;

CachedLengths lengths_of(const at::Tensor& positions) {
  CachedLengths out;
  out.lengths_R = (positions + 1).to(at::kInt);
  out.shortest = out.lengths_R.min().item<int>();
  out.longest = out.lengths_R.max().item<int>();
  return out;
}

TEST(DecodeAttention, EqualsTheGeneralPath) {
  at::manual_seed(11);
  const at::Tensor positions = at::tensor({int64_t{0}, int64_t{60}, int64_t{17}, int64_t{33}});
  for (const auto& [heads, kv_heads, width] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1},
                                               {4, 2, 64},
                                               {6, 6, 80},
                                               {8, 1, 96},
                                               {7, 1, 20},
                                               {4, 4, 128},
                                               {2, 1, 256}}) {
    const at::Tensor q = at::randn({kRows, heads, width}, at::kDouble);
    const at::Tensor k = at::randn({kRows + 1, kCapacity, kv_heads, width}, at::kDouble);
    const at::Tensor v = at::randn({kRows + 1, kCapacity, kv_heads, width}, at::kDouble);
    for (const int64_t window : {0, 1, 20, 100}) {
      for (const double softcap : {0.0, 0.8}) {
        for (const auto& [dtype, tolerance] :
             {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 1e-2}}) {
          const at::Tensor x = q.to(dtype), keys = k.to(dtype).narrow(0, 0, kRows),
                           values = v.to(dtype).narrow(0, 0, kRows);
          const at::Tensor actual =
              decode_attention(x, keys, values, positions, 0.3, window, softcap);
          EXPECT_EQ(actual.scalar_type(), dtype);
          const at::Tensor general =
              attention_rows(x, keys, values, lengths_of(positions), 0.3, window, softcap);
          EXPECT_TRUE(near_l2(actual, general, 2 * tolerance)) << width << ' ' << window;
          for (int64_t r = 0; r < kRows; ++r) {
            const int64_t n = positions[r].item<int64_t>() + 1;
            const auto held = [&](const at::Tensor& all) {
              return all[r].narrow(0, 0, n).to(at::kDouble);
            };
            const at::Tensor exact = attention_cached(x.narrow(0, r, 1).to(at::kDouble), held(keys),
                                                      held(values), 0.3, window, softcap);
            EXPECT_TRUE(near_l2(actual.narrow(0, r, 1), exact, tolerance))
                << heads << '/' << kv_heads << " heads of " << width << ", row of " << n
                << ", window " << window << ", cap " << softcap;
          }
        }
      }
    }
  }
}

TEST(DecodeAttention, TakesQueriesThatAreViews) {
  at::manual_seed(12);
  const at::Tensor qkv = at::randn({kRows, 12, 8}), q = qkv.narrow(1, 4, 4);
  const at::Tensor k = at::randn({kRows, kCapacity, 2, 8}), v = at::randn({kRows, kCapacity, 2, 8});
  const at::Tensor positions = at::full({kRows}, 40, at::kLong);
  EXPECT_TRUE(at::equal(decode_attention(q, k, v, positions, 1),
                        decode_attention(q.clone(), k, v, positions, 1)));
}

TEST(DecodeAttention, SaysWhatItTakes) {
  EXPECT_TRUE(decode_attention_takes(at::kCPU, at::kFloat, 7));
  EXPECT_FALSE(decode_attention_takes(at::kCPU, at::kDouble, 8));
  EXPECT_FALSE(decode_attention_takes(at::kMeta, at::kFloat, 8));
  const at::Device gpu(at::kCUDA, 0);
  for (const int64_t width : {8, 64, 80, 96, 128, 256}) {
    EXPECT_TRUE(decode_attention_takes(gpu, at::kBFloat16, width)) << width;
  }
  for (const int64_t width : {20, 257, 264}) {
    EXPECT_FALSE(decode_attention_takes(gpu, at::kBFloat16, width)) << width;
  }
  const at::Tensor q = at::zeros({2, 4, 8}), k = at::zeros({2, 9, 2, 8});
  const at::Tensor positions = at::zeros({2}, at::kLong);
  EXPECT_NO_THROW(decode_attention(q, k, k, positions, 1));
  EXPECT_THROW(decode_attention(q, k, k, positions.narrow(0, 0, 1), 1), InternalError);
  EXPECT_THROW(decode_attention(q, k.narrow(2, 0, 1), k, positions, 1), InternalError);
  EXPECT_THROW(decode_attention(q.to(at::kDouble), k, k, positions, 1), InternalError);
  EXPECT_THROW(decode_attention(q.narrow(1, 0, 3), k, k, positions, 1), InternalError);
}

}  // namespace
}  // namespace mgm::ops
