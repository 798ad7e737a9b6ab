// The decode kernel on a GPU against its CPU twin, split and whole.
#include "ops/decode_attention.h"

#include <ATen/ATen.h>

#include <limits>

#include "gpu/gpu.h"
#include "grad_check.h"

namespace mgm::ops {
namespace {

// Both compute in fp32 and differ in the order of additions. A score, some 8 at most, comes out of
// its sum to about 1e-6, which the exponential turns into a relative error of the key's weight;
// that of both sides, and as much again in the sums over keys.
constexpr double kFp32 = 5e-6;
// The same, rounded to bf16: neighbours at most, 2^-8 of the value.
constexpr double kBf16 = 1.0 / 256;

class DecodeAttentionGpu : public GpuTest {
 protected:
  // Rows are the first of a larger cache, as in generation; behind their ends there is NaN.
  void expect_twin(const std::vector<int64_t>& at, int64_t capacity, int64_t heads,
                   int64_t kv_heads, int64_t width, at::ScalarType dtype, int64_t window,
                   double softcap) {
    const auto rows = static_cast<int64_t>(at.size());
    const at::Tensor positions = at::tensor(at, at::kLong);
    const auto cache = [&] {
      const at::Tensor x = at::randn({rows + 2, capacity, kv_heads, width}).to(dtype);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t held = at[static_cast<size_t>(r)] + 1;
        x[r].narrow(0, held, capacity - held).fill_(std::numeric_limits<double>::quiet_NaN());
      }
      return x;
    };
    const at::Tensor q = at::randn({rows, heads, width}).to(dtype), k = cache(), v = cache();
    const auto run = [&](const at::Device& device) {
      return decode_attention(q.to(device), k.to(device).narrow(0, 0, rows),
                              v.to(device).narrow(0, 0, rows), positions.to(device), 0.11, window,
                              softcap);
    };
    const at::Tensor gpu = run(at::Device(at::kCUDA, 0)), cpu = run(at::kCPU);
    EXPECT_EQ(gpu.scalar_type(), dtype);
    EXPECT_TRUE(near_l2(gpu, cpu, dtype == at::kFloat ? kFp32 : kBf16))
        << dtype << ", " << rows << " rows of up to " << capacity << ", " << heads << '/'
        << kv_heads << " heads of " << width << ", window " << window << ", cap " << softcap;
    EXPECT_TRUE(at::equal(run(at::Device(at::kCUDA, 0)), gpu)) << "not the same bits again";
  }
};

TEST_F(DecodeAttentionGpu, EqualsItsTwin) {
  at::manual_seed(61);
  for (const int64_t width : {8, 32, 64, 80, 96, 128, 256}) {
    for (const auto& [heads, kv_heads] :
         {std::pair<int64_t, int64_t>{4, 4}, {4, 2}, {6, 2}, {8, 1}, {7, 1}, {14, 2}, {5, 1}}) {
      for (const int64_t window : {0, 1, 100}) {
        for (const double softcap : {0.0, 1.5}) {
          for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
            expect_twin({700, 0, 1310, 63, 64, 31}, 1311, heads, kv_heads, width, dtype, window,
                        softcap);
            expect_twin({299}, 300, heads, kv_heads, width, dtype, window, softcap);
          }
        }
      }
    }
  }
}

TEST_F(DecodeAttentionGpu, ManyRowsAreNotSplit) {
  at::manual_seed(62);
  std::vector<int64_t> at;
  for (int64_t r = 0; r < 80; ++r) at.push_back((r * 37) % 150);
  expect_twin(at, 150, 32, 8, 128, at::kBFloat16, 0, 0);
  expect_twin(at, 150, 8, 8, 64, at::kFloat, 40, 0);
}

TEST_F(DecodeAttentionGpu, LongRows) {
  at::manual_seed(63);
  expect_twin({30000}, 30011, 32, 8, 128, at::kBFloat16, 0, 0);
  expect_twin({30000, 5}, 30011, 4, 4, 64, at::kFloat, 4096, 0);
}

TEST_F(DecodeAttentionGpu, WhatIsNotFiniteShows) {
  const at::Device gpu(at::kCUDA, 0);
  const at::Tensor q = at::rand({1, 2, 64}, gpu) + 1;  // against a negative one an infinity hides
  const at::Tensor v = at::randn({1, 600, 2, 64}, gpu);
  const at::Tensor positions = at::full({1}, 599, at::TensorOptions(gpu).dtype(at::kLong));
  for (const double bad :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    const at::Tensor k = at::randn({1, 600, 2, 64}, gpu);
    k[0][333][1][7] = bad;
    const at::Tensor out = decode_attention(q, k, v, positions, 0.1);
    EXPECT_TRUE(at::isnan(out[0][1]).any().item<bool>()) << bad;
    EXPECT_TRUE(at::isfinite(out[0][0]).all().item<bool>()) << "the other head's keys are finite";
  }
}

}  // namespace
}  // namespace mgm::ops
