// One query per row of a cache on a GPU, for heads that our kernel does not take.
#include "gpu/gpu.h"
#include "grad_check.h"
#include "ops/attention.h"

namespace mgm::ops {
namespace {

CachedLengths lengths_of(const std::vector<int>& lengths) {
  CachedLengths out;
  out.shortest = *std::min_element(lengths.begin(), lengths.end());
  out.longest = *std::max_element(lengths.begin(), lengths.end());
  out.lengths_R = at::tensor(lengths, at::kInt).cuda();
  return out;
}

class AttentionRowsGpu : public GpuTest {
 protected:
  // fp64 on the CPU is the oracle. Rows are the first of a larger cache, as in generation.
  void expect_near(const std::vector<int>& lengths, int64_t heads, int64_t kv_heads, int64_t width,
                   at::ScalarType dtype, int64_t window, double softcap, double tolerance) {
    const auto rows = static_cast<int64_t>(lengths.size());
    const int64_t capacity = 1311;
    const auto draw = [](std::vector<int64_t> shape) {
      return at::randn(shape, at::kCUDA).to(at::kBFloat16);
    };
    const at::Tensor q = draw({rows, heads, width});
    const at::Tensor k = draw({rows + 2, capacity, kv_heads, width});
    const at::Tensor v = draw({rows + 2, capacity, kv_heads, width});
    const auto first_rows = [&](const at::Tensor& x) { return x.narrow(0, 0, rows); };
    const at::Tensor actual =
        attention_rows(q.to(dtype), first_rows(k.to(dtype)), first_rows(v.to(dtype)),
                       lengths_of(lengths), 0.11, window, softcap);
    EXPECT_EQ(actual.scalar_type(), dtype);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = lengths[static_cast<size_t>(r)];
      const auto wide = [&](const at::Tensor& x) {
        return x[r].narrow(0, 0, n).cpu().to(at::kDouble);
      };
      const at::Tensor exact = attention_cached(q.narrow(0, r, 1).cpu().to(at::kDouble), wide(k),
                                                wide(v), 0.11, window, softcap);
      EXPECT_TRUE(near_l2(actual.narrow(0, r, 1), exact, tolerance))
          << dtype << ", row " << r << " of " << n << ", window " << window << ", cap " << softcap;
    }
  }
};

TEST_F(AttentionRowsGpu, EveryShapeOfHeadsAndLengths) {
  at::manual_seed(41);
  for (const std::vector<int>& lengths :
       {std::vector<int>{1311}, {1, 1311, 700, 64, 65, 3}, {513, 513, 513}, {1, 1}}) {
    for (const int64_t window : {0, 1, 64, 1000}) {
      // bf16 rounds scores, probabilities and results to 2^-9 each.
      expect_near(lengths, 6, 3, 20, at::kBFloat16, window, 0, 2e-2);
      expect_near(lengths, 6, 3, 20, at::kBFloat16, window, 1.5, 2e-2);
      expect_near(lengths, 4, 1, 264, at::kBFloat16, window, 0, 2e-2);
      expect_near(lengths, 6, 3, 20, at::kFloat, window, 0, 1e-5);
    }
  }
}

}  // namespace
}  // namespace mgm::ops
