// The next token: greedy, top-p, temperature; frequencies against the probabilities they stand for.
#include "infer/sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"

namespace mgm {
namespace {

constexpr int64_t kDraws = 20000;
// Five standard deviations of a share at most: 5 * sqrt(1/4 / kDraws).
constexpr double kTolerance = 0.018;

at::Tensor logits_of(const std::vector<double>& probabilities) {
  return at::tensor(probabilities, at::kFloat).log();
}

std::vector<double> shares(const at::Tensor& logits, const SamplingConfig& config) {
  std::vector<double> out(static_cast<size_t>(logits.numel()));
  for (int64_t i = 0; i < kDraws; ++i) {
    out[static_cast<size_t>(sample_token(logits, config, i))] += 1.0 / kDraws;
  }
  return out;
}

SamplingConfig sampling(double temperature, double top_p = 1, uint64_t seed = 3) {
  SamplingConfig config;
  config.temperature = temperature;
  config.top_p = top_p;
  config.seed = seed;
  return config;
}

TEST(Sampler, GreedyTakesTheLikeliest) {
  EXPECT_EQ(sample_token(logits_of({0.2, 0.5, 0.3}), sampling(0), 0), 1);
  EXPECT_EQ(sample_token(at::zeros({1}), sampling(0), 0), 0);
  EXPECT_EQ(sample_token(at::zeros({1}), sampling(1), 0), 0);
}

TEST(Sampler, FrequenciesAreTheProbabilities) {
  const std::vector<double> p = {0.15, 0.5, 0.05, 0.3};
  const std::vector<double> seen = shares(logits_of(p), sampling(1));
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(seen[i], p[i], kTolerance) << i;
}

TEST(Sampler, TemperatureSharpens) {
  // p^(1/T) at T = 1/2, normalised.
  const std::vector<double> p = {0.2, 0.3, 0.5}, sharp = {0.04 / 0.38, 0.09 / 0.38, 0.25 / 0.38};
  const std::vector<double> seen = shares(logits_of(p), sampling(0.5));
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(seen[i], sharp[i], kTolerance) << i;
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  const std::vector<double> p = {0.05, 0.3, 0.5, 0.15};
  const std::vector<double> seen = shares(logits_of(p), sampling(1, 0.7));
  EXPECT_EQ(seen[0], 0);
  EXPECT_EQ(seen[3], 0);
  EXPECT_NEAR(seen[1], 0.375, kTolerance);
  EXPECT_NEAR(seen[2], 0.625, kTolerance);
  EXPECT_EQ(shares(logits_of(p), sampling(1, 0))[2], shares(logits_of(p), sampling(1, 0.4))[2]);
  EXPECT_NEAR(shares(logits_of(p), sampling(1, 0))[2], 1, 1e-9);
}

TEST(Sampler, TheSeedFixesTheDraws) {
  const at::Tensor logits = at::zeros({997});
  int64_t same = 0;
  for (int64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(sample_token(logits, sampling(1, 1, 7), i),
              sample_token(logits, sampling(1, 1, 7), i));
    same +=
        sample_token(logits, sampling(1, 1, 7), i) == sample_token(logits, sampling(1, 1, 8), i);
  }
  EXPECT_LE(same, 3);
}

TEST(Sampler, RefusesWhatIsNotFinite) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    at::Tensor logits = at::zeros({5});
    logits[3] = bad;
    EXPECT_THROW(sample_token(logits, sampling(0), 0), NonFiniteError);
    EXPECT_THROW(sample_token(logits, sampling(1), 0), NonFiniteError);
  }
}

}  // namespace
}  // namespace mgm
