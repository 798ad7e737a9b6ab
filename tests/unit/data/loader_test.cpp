#include "data/loader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "data/pack.h"
#include "unit/data/small_data.h"

namespace mgm {
namespace {

constexpr int64_t kTokensPerImage = 4;

bool same(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  return !a.defined() || (a.dtype() == b.dtype() && at::equal(a, b));
}

bool same(const Batch& a, const Batch& b) {
  if (a.samples.size() != b.samples.size()) return false;
  for (size_t i = 0; i < a.samples.size(); ++i) {
    if (a.samples[i].index != b.samples[i].index || a.samples[i].id != b.samples[i].id)
      return false;
  }
  return same(a.input_ids, b.input_ids) && same(a.positions, b.positions) &&
         same(a.seq.cu_seqlens, b.seq.cu_seqlens) && a.seq.offsets == b.seq.offsets &&
         a.seq.max_length == b.seq.max_length && same(a.images, b.images) &&
         same(a.image_rows, b.image_rows) && a.image_keys == b.image_keys &&
         same(a.target_rows, b.target_rows) && same(a.targets, b.targets) && a.holes == b.holes &&
         a.text_only == b.text_only;
}

bool same(const std::vector<StepBatches>& a, const std::vector<StepBatches>& b) {
  if (a.size() != b.size()) return false;
  for (size_t s = 0; s < a.size(); ++s) {
    if (a[s].step != b[s].step || a[s].micro.size() != b[s].micro.size() ||
        a[s].holes != b[s].holes || a[s].skipped.size() != b[s].skipped.size()) {
      return false;
    }
    for (size_t m = 0; m < a[s].micro.size(); ++m) {
      if (!same(a[s].micro[m], b[s].micro[m])) return false;
    }
  }
  return true;
}

class Loaders : public ::testing::Test {
 protected:
  static constexpr int64_t kRecords = 21;
  static constexpr int64_t kGlobalBatch = 8;

  Loaders() {
    data.config.data.grouping = Grouping::kModalityLength;
    data.write(SmallData::records(kRecords));
  }

  Plan plan(const OpenData& open) const {
    return Plan(sample_lengths(open.index, kTokensPerImage), data.config.data, kGlobalBatch, 42);
  }
  std::vector<StepBatches> load(const LoaderRange& range) const {
    const OpenData open(data);
    const Plan order = plan(open);
    Loader loader(order, open.builder, data.config.data, range);
    std::vector<StepBatches> steps;
    while (auto step = loader.next()) steps.push_back(std::move(*step));
    return steps;
  }
  SmallData data;
};

// Everything that the model relies on, told again from the samples.
void expect_packed(const Batch& batch, const SampleBuilder& builder) {
  int64_t at = 0, image = 0, row = 0, target = 0, longest = 0;
  ASSERT_EQ(batch.seq.segments(), static_cast<int64_t>(batch.samples.size()));
  for (size_t s = 0; s < batch.samples.size(); ++s) {
    const Sample sample = std::get<Sample>(builder.build(batch.samples[s].index));
    const auto length = static_cast<int64_t>(sample.ids.size());
    ASSERT_EQ(batch.seq.offsets[s], at);
    ASSERT_EQ(batch.seq.cu_seqlens[static_cast<int64_t>(s)].item<int>(), at);
    EXPECT_EQ(batch.samples[s].tokens, length);
    EXPECT_EQ(batch.samples[s].targets, sample.targets);
    EXPECT_EQ(batch.samples[s].images, static_cast<int64_t>(sample.pictures.size()));
    for (int64_t t = 0; t < length; ++t) {
      ASSERT_EQ(batch.input_ids[at + t].item<int64_t>(), sample.ids[static_cast<size_t>(t)]);
      ASSERT_EQ(batch.positions[at + t].item<int64_t>(), t);
      if (sample.ids[static_cast<size_t>(t)] == kImageTokenIndex) {
        ASSERT_EQ(batch.image_rows[row++].item<int64_t>(), at + t);
      }
      if (t + 1 < length && sample.labels[static_cast<size_t>(t + 1)] != kIgnoreIndex) {
        ASSERT_EQ(batch.target_rows[target].item<int64_t>(), at + t);
        ASSERT_EQ(batch.targets[target++].item<int64_t>(),
                  sample.labels[static_cast<size_t>(t + 1)]);
      }
    }
    for (const Picture& picture : sample.pictures) {
      const at::Tensor got = batch.images[image++].contiguous();
      const std::vector<uint8_t> bytes(got.const_data_ptr<uint8_t>(),
                                       got.const_data_ptr<uint8_t>() + got.numel());
      ASSERT_EQ(bytes, picture.canvas.hwc);
    }
    at += length;
    longest = std::max(longest, length);
  }
  EXPECT_EQ(batch.input_ids.size(0), at);
  EXPECT_EQ(batch.seq.total(), at);
  EXPECT_EQ(batch.seq.max_length, longest);
  EXPECT_EQ(batch.seq.cu_seqlens.scalar_type(), at::kInt);
  EXPECT_EQ(batch.num_images(), image);
  EXPECT_EQ(static_cast<int64_t>(batch.image_keys.size()), image);
  EXPECT_EQ(row, image * kTokensPerImage);
  EXPECT_EQ(batch.image_rows.size(0), row);
  EXPECT_EQ(batch.num_targets(), target);
}

TEST_F(Loaders, PackingInvariants) {
  const OpenData open(data);
  const Plan order = plan(open);
  Loader loader(order, open.builder, data.config.data, {4, 0, 1, 0, 0});
  EXPECT_FALSE(loader.next().has_value());
  std::set<uint64_t> keys;
  int64_t images = 0;
  const auto steps = load({4, 0, 1, 0, 2 * order.steps_per_epoch()});
  ASSERT_EQ(static_cast<int64_t>(steps.size()), 6);
  for (const StepBatches& step : steps) {
    std::vector<int64_t> indices;
    for (const Batch& batch : step.micro) {
      expect_packed(batch, open.builder);
      for (const SampleInfo& info : batch.samples) indices.push_back(info.index);
      keys.insert(batch.image_keys.begin(), batch.image_keys.end());
      images += batch.num_images();
    }
    std::vector<int64_t> expected = order.batch(step.step);
    std::erase(expected, kHole);
    EXPECT_EQ(indices, expected);
    EXPECT_EQ(step.holes, kGlobalBatch - static_cast<int64_t>(expected.size()));
  }
  EXPECT_EQ(static_cast<int64_t>(keys.size()), images);  // of two epochs
  EXPECT_EQ(steps[2].holes, 3);                          // 21 samples in batches of 8
  EXPECT_EQ(steps[5].holes, 3);
}

TEST_F(Loaders, SameBytesWithAnyNumberOfWorkers) {
  data.config.data.workers = 0;
  const auto expected = load({2, 0, 1, 0, 6});
  for (const int64_t workers : {1, 2, 5}) {
    for (const int64_t prefetch : {1, 8}) {
      data.config.data.workers = workers;
      data.config.data.prefetch = prefetch;
      EXPECT_TRUE(same(load({2, 0, 1, 0, 6}), expected)) << workers << " " << prefetch;
    }
  }
}

// Ranks and micro-batches share out one global batch, in its order.
TEST_F(Loaders, AnyNumberOfRanksSeesTheSameGlobalBatch) {
  const auto whole = load({kGlobalBatch, 0, 1, 0, 6});
  for (const int64_t world : {1, 2, 4, 8}) {
    for (int64_t micro = 1; micro * world <= kGlobalBatch; micro *= 2) {
      std::vector<std::vector<StepBatches>> ranks;
      for (int64_t rank = 0; rank < world; ++rank)
        ranks.push_back(load({micro, rank, world, 0, 6}));
      for (size_t s = 0; s < whole.size(); ++s) {
        std::vector<int64_t> indices, expected;
        int64_t holes = 0;
        for (const SampleInfo& info : whole[s].micro[0].samples) expected.push_back(info.index);
        for (size_t a = 0; a < ranks[0][s].micro.size(); ++a) {
          for (const auto& rank : ranks) {
            for (const SampleInfo& i : rank[s].micro[a].samples) indices.push_back(i.index);
            holes += rank[s].micro[a].holes;
          }
        }
        EXPECT_EQ(indices, expected);
        EXPECT_EQ(holes, whole[s].holes);
      }
    }
  }
  EXPECT_EQ(message_of<ConfigError>([&] { load({3, 0, 1, 0, 1}); }),
            "train.global_batch 8 does not divide into 1 ranks with train.micro_batch 3; nearest "
            "global batches: 6 or 9");
}

TEST_F(Loaders, ResumeGivesTheSameTail) {
  const auto whole = load({2, 0, 1, 0, 6});
  for (int64_t first = 0; first <= 6; ++first) {
    auto tail = load({2, 0, 1, first, 6});
    ASSERT_EQ(static_cast<int64_t>(tail.size()), 6 - first);
    std::vector<StepBatches> expected(whole.begin() + first, whole.end());
    EXPECT_TRUE(same(tail, expected)) << first;
  }
}

TEST_F(Loaders, AnEmptyMicroBatchIsABatch) {
  const auto steps = load({1, 0, 1, 2, 3});  // the last step of an epoch: 5 samples, 3 holes
  ASSERT_EQ(steps[0].micro.size(), 8u);
  const Batch& empty = steps[0].micro[7];
  EXPECT_EQ(empty.holes, 1);
  EXPECT_TRUE(empty.samples.empty());
  EXPECT_EQ(empty.input_ids.numel(), 0);
  EXPECT_EQ(empty.seq.segments(), 0);
  EXPECT_EQ(empty.seq.cu_seqlens.numel(), 1);
  EXPECT_EQ(empty.num_images(), 0);
  EXPECT_EQ(empty.num_targets(), 0);
  EXPECT_TRUE(empty.targets.defined());
  EXPECT_TRUE(same(pack({}, 1, 0), empty));
}

TEST_F(Loaders, SkippedSamplesLeaveHoles) {
  const auto good = load({2, 0, 1, 0, 6});
  auto records = SmallData::records(kRecords);
  const std::set<int64_t> bad = {4, 9, 10};
  records[4]["image"] = "zz.png";
  records[9]["conversations"][1]["value"] = "";
  data.dir.write("images/half.jpg", encode_jpeg(noise_image(64, 64, 3), 90).substr(0, 700));
  records[10]["image"] = "half.jpg";
  data.write(records);
  data.config.data.on_error = OnError::kSkip;
  const auto steps = load({2, 0, 1, 0, 6});
  int64_t skipped = 0;
  for (size_t s = 0; s < steps.size(); ++s) {
    for (size_t m = 0; m < steps[s].micro.size(); ++m) {
      std::vector<int64_t> indices, expected;
      for (const SampleInfo& i : good[s].micro[m].samples) {
        if (bad.count(i.index) == 0) expected.push_back(i.index);
      }
      for (const SampleInfo& i : steps[s].micro[m].samples) indices.push_back(i.index);
      EXPECT_EQ(indices, expected);
      EXPECT_EQ(steps[s].micro[m].holes, 2 - static_cast<int64_t>(expected.size()));
    }
    skipped += static_cast<int64_t>(steps[s].skipped.size());
    EXPECT_EQ(steps[s].holes, good[s].holes + static_cast<int64_t>(steps[s].skipped.size()));
  }
  EXPECT_EQ(skipped, 6);  // three samples, two epochs
}

TEST_F(Loaders, StopsAtTheBadSamplesTurn) {
  auto records = SmallData::records(kRecords);
  records[10]["image"] = "zz.png";
  data.write(records);
  const OpenData open(data);
  const Plan order = plan(open);
  int64_t turn = 0;
  const auto holds = [&](const std::vector<int64_t>& batch) {
    return std::find(batch.begin(), batch.end(), 10) != batch.end();
  };
  while (!holds(order.batch(turn))) ++turn;
  for (const int64_t workers : {0, 3}) {
    data.config.data.workers = workers;
    Loader loader(order, open.builder, data.config.data, {2, 0, 1, 0, 3});
    for (int64_t s = 0; s < turn; ++s) EXPECT_TRUE(loader.next().has_value());
    const std::string error = message_of<DataError>([&] { loader.next(); });
    EXPECT_NE(error.find("data.json: record 10 (id 'r10'): missing image: "), std::string::npos)
        << error;
    EXPECT_NE(error.find("images/zz.png: no such file"), std::string::npos) << error;
  }
}

TEST_F(Loaders, EveryKindOfBadSampleStopsOrLeavesAHole) {
  const std::string png = encode_png(noise_image(50, 40, 1));
  const std::string jpeg = encode_jpeg(noise_image(50, 40, 2), 90);
  data.dir.write("images/half.png", png.substr(0, png.size() / 2));
  data.dir.write("images/half.jpg", jpeg.substr(0, jpeg.size() / 2));
  data.dir.write("images/huge.png", png_that_claims(20000, 20000));
  data.dir.write("images/lie.png", png_that_claims(13000, 13000));
  const std::vector<std::string> ask = {"<image>\nQ", "A"};
  OrderedJson backwards = SmallData::record("bad", {}, {"Q", "A", "Q"});
  backwards["conversations"].erase(0);
  std::string text;
  for (int i = 0; i < 50000; ++i) text += "word ";
  const std::vector<std::pair<OrderedJson, std::string>> bad = {
      {SmallData::record("bad", {"gone.png"}, ask), "missing image"},
      {SmallData::record("bad", {"half.png"}, ask), "broken image"},
      {SmallData::record("bad", {"half.jpg"}, ask), "broken image"},
      {SmallData::record("bad", {"huge.png"}, ask), "20000 x 20000"},
      {SmallData::record("bad", {"lie.png"}, ask), "broken image"},
      {SmallData::record("bad", {"a.png"}, {"<image> <image>", "A"}), "image marker mismatch"},
      {SmallData::record("bad", {}, {"Q", " \n"}), "unusable conversation"},
      {backwards, "begins with 'gpt'"},
      {SmallData::record("bad", {}, {"Q", text}), "cut by the length limit"},
  };
  data.config.data.grouping = Grouping::kNone;
  data.config.data.shuffle = false;
  for (const auto& [record, words] : bad) {
    auto records = SmallData::records(kGlobalBatch);
    records[5] = record;
    data.write(records);
    data.config.data.on_error = OnError::kStop;
    const std::string error = message_of<DataError>([&] { load({2, 0, 1, 0, 1}); });
    EXPECT_NE(error.find("record 5 (id 'bad'): "), std::string::npos) << words << ": " << error;
    EXPECT_NE(error.find(words), std::string::npos) << error;
    data.config.data.on_error = OnError::kSkip;
    const auto steps = load({2, 0, 1, 0, 1});
    ASSERT_EQ(steps[0].skipped.size(), 1u) << words;
    EXPECT_EQ(steps[0].skipped[0].index, 5);
    EXPECT_EQ(steps[0].holes, 1);
    ASSERT_EQ(steps[0].micro[2].samples.size(), 1u);  // 4 stays, 6 does not move up
    EXPECT_EQ(steps[0].micro[2].samples[0].index, 4);
    EXPECT_EQ(steps[0].micro[3].samples[0].index, 6);
  }
}

TEST_F(Loaders, MalformedRecordsAreKnownBeforeTheFirstStep) {
  auto records = SmallData::records(kRecords);
  records[20].erase("conversations");
  data.write(records);
  EXPECT_NE(message_of<DataError>([&] {
              load({2, 0, 1, 0, 1});
            }).find("record 20: has no 'conversations'"),
            std::string::npos);
  data.config.data.on_error = OnError::kSkip;
  int64_t skipped = 0;
  for (const StepBatches& step : load({2, 0, 1, 0, 3})) {
    skipped += static_cast<int64_t>(step.skipped.size());
  }
  EXPECT_EQ(skipped, 1);
}

}  // namespace
}  // namespace mgm
