// Recording and replaying without a GPU: what is recorded when, and that a replay sees the tokens,
// rows and lengths of its own time.
#include "infer/step_graphs.h"

#include <gtest/gtest.h>

#include "grad_check.h"
#include "infer/row_decoder.h"
#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

// As a CUDA graph does: recording takes a step down without doing it, a replay does it on the
// device. It also does it on the host, whose part a graph has not: that must make no difference.
class LateRecorder : public StepRecorder {
 public:
  std::unique_ptr<RecordedStep> record(const StepBody& step) override {
    struct Late : RecordedStep {
      at::Tensor replay() override { return step(); }
      StepBody step;
    };
    auto out = std::make_unique<Late>();
    out->step = step;
    ++records;
    return out;
  }
  int records = 0;
};

TEST(StepGraphs, ANumberOfRowsIsRecordedWhenItComesAgain) {
  LateRecorder recorder;
  StepGraphs graphs(&recorder);
  int64_t ran = 0;
  const auto run = [&](int64_t rows) {
    return graphs.run(rows, [&ran, rows] { return at::full({1}, double(100 * rows + ++ran)); })
        .item<double>();
  };
  EXPECT_EQ(run(3), 301);
  EXPECT_EQ(graphs.recorded(), 0);
  EXPECT_EQ(run(3), 302);
  EXPECT_EQ(run(2), 203);
  EXPECT_EQ(run(3), 304);
  EXPECT_EQ(graphs.recorded(), 1);
  EXPECT_EQ(graphs.replayed(), 2);
  EXPECT_EQ(run(2), 205);
  EXPECT_EQ(graphs.recorded(), 2);
}

TEST(StepGraphs, NoMoreThanSoManyAreKept) {
  LateRecorder recorder;
  StepGraphs graphs(&recorder);
  const auto most = static_cast<int64_t>(StepGraphs::kMost);
  const auto run = [&](int64_t rows) { graphs.run(rows, [] { return at::zeros({1}); }); };
  for (int twice = 0; twice < 2; ++twice) {
    for (int64_t rows = 1; rows <= most; ++rows) run(rows);
  }
  EXPECT_EQ(recorder.records, most);
  run(1);  // was the oldest, now 2 is
  run(most + 1);
  run(most + 1);
  EXPECT_EQ(recorder.records, most + 1);
  run(1);
  run(3);
  EXPECT_EQ(recorder.records, most + 1);
  run(2);
  EXPECT_EQ(recorder.records, most + 2);
}

TEST(StepGraphs, WithoutARecorderStepsRun) {
  StepGraphs graphs(nullptr);
  for (int i = 0; i < 3; ++i) graphs.run(1, [] { return at::zeros({1}); });
  EXPECT_EQ(graphs.recorded() + graphs.replayed(), 0);
  EXPECT_EQ(make_graph_recorder(at::kCPU), nullptr);
}

TEST(StepGraphs, ReplayedStepsEqualThoseThatRun) {
  const TinyChat chat;
  const MiniGemini& model = *chat.loaded.model;
  LateRecorder recorder;
  RowDecoder plain(model.decoder(), 3, 60, at::kFloat);
  RowDecoder replayed(model.decoder(), 3, 60, at::kFloat, &recorder);
  const auto both = [&](const auto& action) {
    action(plain);
    action(replayed);
  };
  int64_t token = 7;
  const auto step = [&] {
    std::vector<int64_t> ids;
    for (int64_t r = 0; r < plain.size(); ++r) ids.push_back(token = (token * 37 + 11) % kRows);
    both([&](RowDecoder& rows) { rows.put(0, at::tensor(ids, at::kLong)); });
    EXPECT_TRUE(at::equal(plain.step(kPlain), replayed.step(kPlain)));
    for (int64_t r = 0; r < plain.size(); ++r) EXPECT_EQ(plain.length(r), replayed.length(r));
  };
  const auto add = [&](int64_t index, int64_t pictures, int64_t tokens) {
    const Batch batch = pack({tiny_sample(model, index, pictures, tokens)}, 0, 0);
    const at::Tensor x = model.embed(batch, kPlain);
    both([&](RowDecoder& rows) { rows.add(x, batch, kPlain); });
  };
  add(1, 1, 20);
  add(2, 0, 5);
  for (int i = 0; i < 4; ++i) step();
  EXPECT_EQ(replayed.graphs().recorded(), 1);
  add(3, 2, 8);
  for (int i = 0; i < 3; ++i) step();
  both([](RowDecoder& rows) { rows.remove(0); });  // the last takes its place
  for (int i = 0; i < 3; ++i) step();              // two rows again: the graph of before
  EXPECT_EQ(replayed.graphs().recorded(), 2);
  EXPECT_EQ(replayed.graphs().replayed(), 3 + 2 + 3);
}

TEST(StepGraphs, WhatCannotBeRecordedRuns) {
  struct Refusing : StepRecorder {
    std::unique_ptr<RecordedStep> record(const StepBody&) override {
      ++asked;
      throw InternalError("no room.");
    }
    int asked = 0;
  } recorder;
  const TinyChat chat;
  const MiniGemini& model = *chat.loaded.model;
  const Batch batch = pack({tiny_sample(model, 1, 1, 9)}, 0, 0);
  for (int cache = 0; cache < 2; ++cache) {
    RowDecoder plain(model.decoder(), 1, 60, at::kFloat);
    RowDecoder refused(model.decoder(), 1, 60, at::kFloat, &recorder);
    for (RowDecoder* rows : {&plain, &refused})
      rows->add(model.embed(batch, kPlain), batch, kPlain);
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(at::equal(plain.step(kPlain), refused.step(kPlain)));
      EXPECT_EQ(plain.length(0), refused.length(0));
    }
    EXPECT_EQ(refused.graphs().recorded() + refused.graphs().replayed(), 0);
    EXPECT_EQ(recorder.asked, 1);
  }
}

TEST(StepGraphs, AFullRowEndsReplaysToo) {
  const TinyChat chat;
  const MiniGemini& model = *chat.loaded.model;
  LateRecorder recorder;
  const Batch batch = pack({tiny_sample(model, 1, 0, 9)}, 0, 0);  // BOS and nine tokens
  RowDecoder rows(model.decoder(), 1, 13, at::kFloat, &recorder);
  rows.add(model.embed(batch, kPlain), batch, kPlain);
  for (int i = 0; i < 3; ++i) rows.step(kPlain);
  EXPECT_EQ(rows.graphs().replayed(), 2);
  EXPECT_THROW(rows.step(kPlain), InternalError);
}

// A graph holds for lengths the host did not know when it was recorded.
TEST(StepGraphs, AStepReadsNoLengthsFromTheHost) {
  const TinyChat chat;
  const Decoder& decoder = chat.loaded.model->decoder();
  SeqInfo seq;
  seq.offsets = {0, 1, 2};
  seq.max_length = 1;
  const at::Tensor x = at::randn({2, decoder.config().hidden_size});
  const at::Tensor positions = at::tensor({int64_t{4}, int64_t{17}});
  const auto attend = [&](const std::vector<int64_t>& lengths) {
    KvCache cache = decoder.make_cache(2, 20, at::kFloat);
    at::manual_seed(3);
    for (size_t i = 0; i < cache.keys.size(); ++i) {
      cache.keys[i].normal_();
      cache.values[i].normal_();
    }
    cache.lengths = lengths;
    return decoder.blocks(x, positions, seq, kPlain, {&cache});
  };
  EXPECT_TRUE(at::equal(attend({4, 17}), attend({1, 1})));
  EXPECT_TRUE(at::equal(attend({4, 17}), attend({9, 9})));
}

TEST(StepGraphs, WhatCannotBeRecordedIsSaid) {
  RunConfig config = tiny_config();
  config.model.llm.head_dim = 16;
  EXPECT_EQ(unrecordable(Decoder(config.model.llm), at::kBFloat16), "");
  EXPECT_NE(unrecordable(Decoder(config.model.llm), at::kDouble), "");
  Decoder split(config.model.llm);
  split.split({{0, at::kCPU}, {1, at::kCPU}});
  EXPECT_NE(unrecordable(split, at::kFloat).find("devices"), std::string::npos);
  config.model.llm.head_dim = 6;
  EXPECT_NE(unrecordable(Decoder(config.model.llm), at::kFloat).find("width 6"), std::string::npos);
  config.model.llm.head_dim = 16;
  config.model.llm.arch = LlmArch::kMixtral;
  config.model.llm.num_experts = 4;
  EXPECT_NE(unrecordable(Decoder(config.model.llm), at::kFloat).find("experts"), std::string::npos);
}

}  // namespace
}  // namespace mgm
