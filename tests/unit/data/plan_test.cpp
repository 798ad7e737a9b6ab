#include "data/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/rng.h"
#include "unit/data/test_files.h"

namespace mgm {
namespace {

using Order = std::vector<int64_t>;

std::vector<SampleLength> samples_of(int64_t images, int64_t texts, uint64_t seed = 3) {
  std::vector<SampleLength> samples;
  const Order places = permutation(images + texts, seed, 0);
  for (int64_t i = 0; i < images + texts; ++i) {
    const auto length = static_cast<int64_t>(uniform01(seed, 1, static_cast<uint64_t>(i)) * 300);
    const bool image = places[static_cast<size_t>(i)] < images;
    samples.push_back({length + (image ? 576 : 1), image});
  }
  return samples;
}

DataConfig config_of(Grouping grouping, bool shuffle = true) {
  DataConfig config;
  config.grouping = grouping;
  config.shuffle = shuffle;
  return config;
}

Order slice(const Order& order, int64_t begin, int64_t count) {
  return {order.begin() + begin, order.begin() + begin + count};
}
Order sorted(Order order) {
  std::sort(order.begin(), order.end());
  return order;
}

TEST(Plan, EveryEpochVisitsEverySampleOnceAndEndsInHoles) {
  for (const Grouping grouping : {Grouping::kNone, Grouping::kModalityLength}) {
    for (const int64_t batch : {1, 2, 7, 8, 12, 13, 100}) {
      for (const int64_t images : {0, 1, 7, 41, 96}) {
        for (const int64_t texts : {0, 1, 30}) {
          if (images + texts == 0) continue;
          const Plan plan(samples_of(images, texts), config_of(grouping), batch, 42);
          const int64_t n = images + texts;
          ASSERT_EQ(plan.steps_per_epoch(), (n + batch - 1) / batch);
          for (const int64_t epoch : {0, 1}) {
            Order all;
            for (int64_t s = 0; s < plan.steps_per_epoch(); ++s) {
              const Order one = plan.batch(epoch * plan.steps_per_epoch() + s);
              ASSERT_EQ(static_cast<int64_t>(one.size()), batch);
              all.insert(all.end(), one.begin(), one.end());
            }
            EXPECT_EQ(all, plan.epoch_order(epoch));
            for (size_t i = 0; i < all.size(); ++i) {
              EXPECT_EQ(all[i] == kHole, static_cast<int64_t>(i) >= n);
            }
            all.resize(static_cast<size_t>(n));
            Order expected(static_cast<size_t>(n));
            std::iota(expected.begin(), expected.end(), int64_t{0});
            EXPECT_EQ(sorted(all), expected);
          }
        }
      }
    }
  }
}

TEST(Plan, DependsOnSeedAndEpochOnly) {
  for (const Grouping grouping : {Grouping::kNone, Grouping::kModalityLength}) {
    const auto order = [&](int64_t seed, int64_t epoch) {
      return Plan(samples_of(50, 40), config_of(grouping), 8, seed).epoch_order(epoch);
    };
    EXPECT_EQ(order(1, 0), order(1, 0));
    EXPECT_EQ(order(1, 3), order(1, 3));
    EXPECT_NE(order(1, 0), order(2, 0));
    EXPECT_NE(order(1, 0), order(1, 1));
  }
}

TEST(Plan, WithoutShuffleInFileOrder) {
  const Plan plan(samples_of(5, 0), config_of(Grouping::kNone, false), 2, 1);
  EXPECT_EQ(plan.epoch_order(0), (Order{0, 1, 2, 3, 4, kHole}));
  EXPECT_EQ(plan.epoch_order(7), plan.epoch_order(0));
}

// Steps may be asked for in any order, from any thread: a resumed run sees the same tail.
TEST(Plan, AnyStepAlone) {
  const Plan plan(samples_of(30, 21), config_of(Grouping::kModalityLength), 4, 9);
  std::vector<Order> forward;
  for (int64_t s = 0; s < 60; ++s) forward.push_back(plan.batch(s));
  const Plan again(samples_of(30, 21), config_of(Grouping::kModalityLength), 4, 9);
  std::vector<std::jthread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t s = 59 - t; s >= 0; s -= 2) {
        wrong += again.batch(s) != forward[static_cast<size_t>(s)];
      }
    });
  }
  threads.clear();
  EXPECT_EQ(wrong, 0);
}

// Check 9 of the specification: every full batch holds one modality, the leftovers come last,
// merged; at most one full batch is made of them.
TEST(Plan, FullBatchesHoldOneModality) {
  for (const auto& [images, texts] : std::vector<std::pair<int64_t, int64_t>>{
           {64, 32}, {61, 37}, {8, 0}, {0, 29}, {7, 7}, {100, 3}, {1, 1}}) {
    constexpr int64_t kBatch = 8;
    const auto samples = samples_of(images, texts);
    const Plan plan(samples, config_of(Grouping::kModalityLength), kBatch, 42);
    const Order order = plan.epoch_order(0);
    const int64_t full = images / kBatch + texts / kBatch;
    int64_t image_batches = 0;
    for (int64_t b = 0; b < full; ++b) {
      int64_t with_image = 0;
      for (const int64_t i : slice(order, b * kBatch, kBatch)) {
        with_image += samples[static_cast<size_t>(i)].has_image ? 1 : 0;
      }
      EXPECT_TRUE(with_image == 0 || with_image == kBatch) << b;
      image_batches += with_image == kBatch ? 1 : 0;
    }
    EXPECT_EQ(image_batches, images / kBatch);
    Order rest(order.begin() + full * kBatch, order.begin() + images + texts);
    EXPECT_EQ(static_cast<int64_t>(rest.size()), images % kBatch + texts % kBatch);
    EXPECT_TRUE(std::is_sorted(rest.begin(), rest.end()));
  }
}

// LLaVA's get_modality_length_grouped_indices restated, given the permutations: the members of
// every batch are the same, and so is the order of batches. The order inside a batch is ours.
TEST(Plan, SameBatchesAsTheReference) {
  constexpr int64_t kBatch = 6, kImages = 45, kTexts = 29, kSeed = 5, kEpoch = 2;
  const auto samples = samples_of(kImages, kTexts);
  std::vector<Order> megabatches;
  Order additional;
  for (const bool image : {true, false}) {
    Order members;
    for (int64_t i = 0; i < kImages + kTexts; ++i) {
      if (samples[static_cast<size_t>(i)].has_image == image) members.push_back(i);
    }
    const Order order =
        permutation(static_cast<int64_t>(members.size()),
                    rng_key(kSeed, image ? "data.order.image" : "data.order.text"), kEpoch);
    std::vector<Order> chunks;
    for (size_t i = 0; i < order.size(); i += kBatch) {
      chunks.emplace_back();
      for (size_t j = i; j < std::min(order.size(), i + kBatch); ++j) {
        chunks.back().push_back(members[static_cast<size_t>(order[j])]);
      }
    }
    additional.insert(additional.end(), chunks.back().begin(), chunks.back().end());
    megabatches.insert(megabatches.end(), chunks.begin(), chunks.end() - 1);
  }
  std::vector<Order> expected;
  for (const int64_t b : permutation(static_cast<int64_t>(megabatches.size()),
                                     rng_key(kSeed, "data.order.batch"), kEpoch)) {
    expected.push_back(sorted(megabatches[static_cast<size_t>(b)]));
  }
  const Plan plan(samples, config_of(Grouping::kModalityLength), kBatch, kSeed);
  const Order order = plan.epoch_order(kEpoch);
  for (size_t b = 0; b < expected.size(); ++b) {
    EXPECT_EQ(sorted(slice(order, static_cast<int64_t>(b) * kBatch, kBatch)), expected[b]) << b;
  }
  const auto done = static_cast<int64_t>(expected.size()) * kBatch;
  EXPECT_EQ(slice(order, done, kImages + kTexts - done), sorted(additional));
}

double spread(const Order& order, const std::vector<SampleLength>& samples, int64_t slices) {
  const int64_t count = static_cast<int64_t>(order.size()) / slices;
  int64_t least = INT64_MAX, most = 0;
  for (int64_t s = 0; s < slices; ++s) {
    int64_t total = 0;
    for (const int64_t i : slice(order, s * count, count)) {
      total += samples[static_cast<size_t>(i)].length;
    }
    least = std::min(least, total);
    most = std::max(most, total);
  }
  return static_cast<double>(most - least) / static_cast<double>(most);
}

TEST(Plan, SlicesOfABatchAreNearEqualInLength) {
  for (const int64_t batch : {256, 128, 96, 48}) {
    std::vector<SampleLength> samples;
    for (int64_t i = 0; i < batch; ++i) {  // word counts with a long tail
      const double u = uniform01(11, 0, static_cast<uint64_t>(i));
      samples.push_back({20 + static_cast<int64_t>(60 / (0.1 + u)), true});
    }
    Order items(static_cast<size_t>(batch));
    std::iota(items.begin(), items.end(), int64_t{0});
    const Order random = items;
    std::stable_sort(items.begin(), items.end(), [&](int64_t a, int64_t b) {
      return samples[static_cast<size_t>(a)].length > samples[static_cast<size_t>(b)].length;
    });
    balance_slices(items, samples);
    EXPECT_EQ(sorted(items), random);
    for (int64_t slices = 2; slices <= batch / 8; ++slices) {
      if (batch % slices != 0) continue;
      EXPECT_LT(spread(items, samples, slices), 0.15) << batch << " in " << slices;
      EXPECT_LT(spread(items, samples, slices), spread(random, samples, slices)) << slices;
    }
  }
}

TEST(Plan, NothingToTrainOn) {
  EXPECT_EQ(message_of<DataError>([] { Plan({}, config_of(Grouping::kNone), 4, 1); }),
            "data.sources hold no records: there is nothing to train on");
}

}  // namespace
}  // namespace mgm
