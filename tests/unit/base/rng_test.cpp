#include "base/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace mgm {
namespace {

// Known answers of Philox4x32-10 from the Random123 distribution (kat_vectors).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Rng, FillDoesNotDependOnTheCut) {
  std::vector<float> whole(101), parts(101);
  fill_normal(whole.data(), whole.size(), 7, 0, 0, 1);
  for (size_t at = 0, step = 1; at < parts.size(); at += step, step = step % 7 + 1) {
    fill_normal(parts.data() + at, std::min(step, parts.size() - at), 7, at, 0, 1);
  }
  EXPECT_EQ(whole, parts);
}

TEST(Rng, NormalMoments) {
  std::vector<float> x(200000);
  fill_normal(x.data(), x.size(), rng_key(1, "w"), 0, 2.0, 3.0);
  double mean = 0, square = 0;
  for (const float v : x) mean += v;
  mean /= static_cast<double>(x.size());
  for (const float v : x) square += (v - mean) * (v - mean);
  EXPECT_NEAR(mean, 2.0, 0.03);
  EXPECT_NEAR(std::sqrt(square / static_cast<double>(x.size())), 3.0, 0.03);
}

TEST(Rng, PermutationIsAPermutationAndDependsOnItsStream) {
  const auto a = permutation(1000, 5, 0), b = permutation(1000, 5, 1);
  EXPECT_EQ(std::set<int64_t>(a.begin(), a.end()).size(), 1000u);
  EXPECT_NE(a, b);
  EXPECT_EQ(a, permutation(1000, 5, 0));
  EXPECT_TRUE(permutation(0, 5, 0).empty());
}

}  // namespace
}  // namespace mgm
