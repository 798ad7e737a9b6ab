// Blocks over GPUs: by hand, and against every way to cut.
#include "assemble/placement.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "base/rng.h"
#include "model/mini_gemini.h"

namespace mgm {
namespace {

using Blocks = std::vector<int64_t>;

ModelBytes even(size_t blocks, uint64_t each) {
  ModelBytes out;
  out.blocks.assign(blocks, each);
  return out;
}

TEST(Placement, OneCardIfItFits) {
  ModelBytes bytes = even(8, 10);
  bytes.first = 5, bytes.last = 3, bytes.cache = 1, bytes.work = 4;
  EXPECT_EQ(bytes.weights(), 88u);
  EXPECT_EQ(bytes.on_one(0, 8), 100u);
  EXPECT_EQ(place_blocks(bytes, {{0, 100}, {1, 100}}, /*fewest=*/true), Blocks({0}));
  EXPECT_EQ(place_blocks(bytes, {{0, 99}, {1, 100}}, true), Blocks({0, 4}));
}

TEST(Placement, AsFewAsNeeded) {
  const ModelBytes bytes = even(12, 10);
  EXPECT_EQ(place_blocks(bytes, {{0, 60}, {1, 60}, {2, 60}, {3, 60}}, true), Blocks({0, 6}));
  EXPECT_EQ(place_blocks(bytes, {{0, 45}, {1, 45}, {2, 45}, {3, 45}}, true), Blocks({0, 4, 8}));
  // The first holds 5, so that the third must hold 1 at least.
  EXPECT_EQ(place_blocks(bytes, {{0, 59}, {1, 60}, {2, 60}}, true).size(), 3u);
}

TEST(Placement, AllThatAreNamedAreUsed) {
  const ModelBytes bytes = even(12, 10);
  EXPECT_EQ(place_blocks(bytes, {{3, 1000}, {1, 1000}}, false), Blocks({0, 6}));
  EXPECT_EQ(place_blocks(bytes, {{3, 1000}, {1, 2000}}, false), Blocks({0, 4}));
  EXPECT_THROW(place_blocks(even(2, 1), {{0, 9}, {1, 9}, {2, 9}}, false), ConfigError);
}

TEST(Placement, WhatComesFirstAndLastCounts) {
  ModelBytes bytes = even(10, 10);
  bytes.first = 40;
  EXPECT_EQ(place_blocks(bytes, {{0, 200}, {1, 200}}, false), Blocks({0, 3}));
  bytes.first = 0, bytes.last = 40;
  EXPECT_EQ(place_blocks(bytes, {{0, 200}, {1, 200}}, false), Blocks({0, 7}));
}

// The smallest fill of the fullest card over every way to cut.
double by_trying(const ModelBytes& bytes, const std::vector<Card>& cards, size_t card,
                 size_t begin) {
  const size_t blocks = bytes.blocks.size();
  const auto fill = [&](size_t end) {
    return double(bytes.on_one(begin, end)) / double(cards[card].free_bytes);
  };
  if (card + 1 == cards.size()) return fill(blocks);
  double best = std::numeric_limits<double>::infinity();
  for (size_t end = begin + 1; end < blocks; ++end) {
    best = std::min(best, std::max(fill(end), by_trying(bytes, cards, card + 1, end)));
  }
  return best;
}

TEST(Placement, IsTheBestThereIs) {
  const uint64_t key = rng_key(5, "placement");
  uint64_t drawn = 0;
  const auto draw = [&](double most) {
    return static_cast<uint64_t>(1 + most * uniform01(key, 0, drawn++));
  };
  for (int trial = 0; trial < 200; ++trial) {
    ModelBytes bytes;
    for (uint64_t i = 0; i < 4 + draw(5); ++i) bytes.blocks.push_back(draw(50));
    bytes.first = draw(90), bytes.last = draw(60), bytes.cache = draw(9), bytes.work = draw(20);
    std::vector<Card> cards;
    for (size_t c = 0; c < 1 + size_t(trial) % 3; ++c)
      cards.push_back({int64_t(c), 4000 + draw(5000)});
    const Blocks found = place_blocks(bytes, cards, false);
    ASSERT_EQ(found.size(), cards.size());
    double fullest = 0;
    for (size_t c = 0; c < found.size(); ++c) {
      const size_t end = c + 1 < found.size() ? size_t(found[c + 1]) : bytes.blocks.size();
      fullest = std::max(fullest,
                         double(bytes.on_one(size_t(found[c]), end)) / double(cards[c].free_bytes));
    }
    EXPECT_EQ(fullest, by_trying(bytes, cards, 0, 0));
  }
}

TEST(Placement, RefusalsHaveTheNumbers) {
  ModelBytes bytes = even(4, uint64_t{3} << 30);
  bytes.cache = uint64_t{1} << 29;
  try {
    place_blocks(bytes, {{2, uint64_t{5} << 30}, {3, uint64_t{6} << 30}}, true);
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& e) {
    for (const char* part : {"12.00 GiB of weights", "2.00 GiB of cache", "GPU 2 has 5.00 GiB",
                             "GPU 3 has 6.00 GiB", "--gpus", "--batch-size"}) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << part << ": " << e.what();
    }
  }
  EXPECT_THROW(place_blocks(bytes, {{0, 0}}, true), ConfigError);
}

TEST(Placement, BytesAreThoseOfTheWeightsAndTheCache) {
  RunConfig config;  // of 7B: nothing is allocated but a small cache
  for (const bool tied : {false, true}) {
    config.model.llm.tie_embeddings = tied;
    const MiniGemini model(config.model, config.image);
    const DecodeLoad load{3, 5, 40};
    const ModelBytes bytes = model_bytes(model, at::kFloat, load);
    uint64_t all = 0;
    for (const Param* param : model.params()) all += uint64_t(param->spec.numel()) * 4;
    EXPECT_EQ(bytes.weights(), all);
    EXPECT_EQ(bytes.last > 0, !tied);
    const KvCache cache = model.decoder().make_cache(3, 5, at::kFloat);
    EXPECT_EQ(bytes.cache * bytes.blocks.size(), cache.bytes());
    const ModelBytes half = model_bytes(model, at::kBFloat16, load);
    EXPECT_EQ(half.weights() * 2, all);
    EXPECT_LT(half.work, bytes.work);
  }
  const uint64_t dense =
      model_bytes(MiniGemini(config.model, config.image), at::kBFloat16, {}).blocks[0];
  config.model.llm.quantize = Quantize::kNf4;
  const uint64_t packed =
      model_bytes(MiniGemini(config.model, config.image), at::kBFloat16, {}).blocks[0];
  EXPECT_LT(packed * 3, dense);
}

}  // namespace
}  // namespace mgm
