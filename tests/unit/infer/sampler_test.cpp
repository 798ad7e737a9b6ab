// The next token: greedy, temperature, top-k, top-p, repetition penalty; frequencies against the
// probabilities they stand for. Values against transformers: tests/parity/test_sampler_parity.py.
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

// `count` tokens of one sequence that sees the same logits again and again.
std::vector<int32_t> tokens(const at::Tensor& logits, const SamplingConfig& config, int64_t count,
                            uint64_t stream = 0) {
  RowSampler sampler(config, 1, logits.numel(), at::kCPU);
  sampler.add({}, stream);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    out.push_back(sampler.choose(0, logits.unsqueeze(0)).ids[0]);
  }
  return out;
}

// How often each token is drawn, by many sequences at once.
std::vector<double> shares(const at::Tensor& logits, const SamplingConfig& config) {
  constexpr int64_t kSequences = 1000;
  RowSampler sampler(config, kSequences, logits.numel(), at::kCPU);
  for (int64_t s = 0; s < kSequences; ++s) sampler.add({}, static_cast<uint64_t>(s));
  std::vector<double> out(static_cast<size_t>(logits.numel()));
  for (int64_t i = 0; i < kDraws / kSequences; ++i) {
    for (const int32_t id : sampler.choose(0, logits.expand({kSequences, -1})).ids) {
      out[static_cast<size_t>(id)] += 1.0 / kDraws;
    }
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
  EXPECT_EQ(tokens(logits_of({0.2, 0.5, 0.3}), sampling(0), 1)[0], 1);
  EXPECT_EQ(tokens(at::zeros({1}), sampling(0), 1)[0], 0);
  EXPECT_EQ(tokens(at::zeros({1}), sampling(1), 1)[0], 0);
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

TEST(Sampler, TopKKeepsTheLikeliestAndTheirEquals) {
  SamplingConfig config = sampling(1);
  config.top_k = 2;
  const std::vector<double> seen = shares(logits_of({0.1, 0.4, 0.2, 0.3}), config);
  EXPECT_EQ(seen[0], 0);
  EXPECT_EQ(seen[2], 0);
  EXPECT_NEAR(seen[1], 4.0 / 7, kTolerance);
  const std::vector<double> equal = shares(logits_of({0.25, 0.25, 0.4, 0.1}), config);
  EXPECT_EQ(equal[3], 0);
  EXPECT_NEAR(equal[0], 0.25 / 0.9, kTolerance);
  EXPECT_NEAR(equal[1], 0.25 / 0.9, kTolerance);
  config.top_k = 9;  // more than there are: all
  EXPECT_NEAR(shares(logits_of({0.2, 0.8}), config)[0], 0.2, kTolerance);
}

TEST(Sampler, TopPIsOfWhatTopKLeaves) {
  SamplingConfig config = sampling(1, 0.55);
  config.top_k = 2;  // 4/7 and 3/7: the first alone has 0.55
  EXPECT_NEAR(shares(logits_of({0.1, 0.4, 0.2, 0.3}), config)[1], 1, 1e-9);
}

TEST(Sampler, ThePenaltyIsForPromptAndAnswer) {
  SamplingConfig config;
  config.repetition_penalty = 2;
  // Logits 4, 3, 2.5, -1: of the prompt's ids the first is halved and the last doubled.
  const at::Tensor logits = at::tensor({4.0, 3.0, 2.5, -1.0}, at::kFloat).unsqueeze(0);
  RowSampler sampler(config, 1, 4, at::kCPU);
  sampler.add({0, -200, 3, 0, 77}, 0);
  EXPECT_EQ(sampler.choose(0, logits).ids[0], 1);  // 2, 3, 2.5, -2
  EXPECT_EQ(sampler.choose(0, logits).ids[0], 2);  // 2, 1.5, 2.5, -2
  EXPECT_EQ(sampler.choose(0, logits).ids[0], 0);  // 2, 1.5, 1.25, -2: once per token
  const at::Tensor seen = at::tensor({1, 0, 0, 1}, at::kInt).to(at::kBool).unsqueeze(0);
  EXPECT_TRUE(at::equal(process_logits(logits, seen, config),
                        at::tensor({2.0, 3.0, 2.5, -2.0}, at::kFloat).unsqueeze(0)));
}

TEST(Sampler, RowsAreAsTheyAreAlone) {
  SamplingConfig config = sampling(1.2, 0.9, 5);
  config.repetition_penalty = 1.3;
  at::manual_seed(4);
  const at::Tensor logits = at::randn({3, 50});
  RowSampler together(config, 3, 50, at::kCPU);
  for (uint64_t r = 0; r < 3; ++r) together.add({7, 9}, r);
  std::vector<std::vector<int32_t>> ids(3);
  for (int64_t i = 0; i < 20; ++i) {
    const std::vector<int32_t> chosen = together.choose(0, logits).ids;
    for (size_t r = 0; r < 3; ++r) ids[r].push_back(chosen[r]);
  }
  for (int64_t r = 0; r < 3; ++r) {
    RowSampler alone(config, 1, 50, at::kCPU);
    alone.add({7, 9}, static_cast<uint64_t>(r));
    for (const int32_t id : ids[static_cast<size_t>(r)]) {
      EXPECT_EQ(alone.choose(0, logits.narrow(0, r, 1)).ids[0], id);
    }
  }
  EXPECT_NE(ids[0], ids[1]);
}

TEST(Sampler, TheSeedFixesTheDraws) {
  const at::Tensor logits = at::zeros({997});
  const std::vector<int32_t> first = tokens(logits, sampling(1, 1, 7), 50);
  EXPECT_EQ(first, tokens(logits, sampling(1, 1, 7), 50));
  for (const auto& other :
       {tokens(logits, sampling(1, 1, 8), 50), tokens(logits, sampling(1, 1, 7), 50, 1)}) {
    int64_t same = 0;
    for (size_t i = 0; i < first.size(); ++i) same += first[i] == other[i];
    EXPECT_LE(same, 3);
  }
}

TEST(Sampler, RefusesWhatIsNotFinite) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    at::Tensor logits = at::zeros({5});
    logits[3] = bad;
    EXPECT_THROW(tokens(logits, sampling(0), 1), NonFiniteError);
    EXPECT_THROW(tokens(logits, sampling(1), 1), NonFiniteError);
  }
  EXPECT_THROW(tokens(at::zeros({5}), sampling(1e-40), 1), ConfigError);
  EXPECT_THROW(tokens(at::zeros({5}), sampling(-1), 1), ConfigError);
  SamplingConfig both = sampling(0.7);
  both.num_beams = 2;
  EXPECT_THROW(check_sampling(both), ConfigError);
  both.temperature = 0;
  check_sampling(both);
  for (double SamplingConfig::*number :
       {&SamplingConfig::temperature, &SamplingConfig::top_p, &SamplingConfig::repetition_penalty,
        &SamplingConfig::length_penalty}) {
    SamplingConfig nan;
    nan.*number = NAN;
    EXPECT_THROW(check_sampling(nan), ConfigError);
  }
}

}  // namespace
}  // namespace mgm
