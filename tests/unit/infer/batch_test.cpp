// Several sequences at once: rows of different lengths that come and go against the full forward of
// each, and answers of a batch against those one at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "base/fs.h"
#include "grad_check.h"
#include "infer/row_decoder.h"
#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

// Token streams and what feeds them to a RowDecoder.
class Feeder {
 public:
  Feeder(const TinyChat& chat, at::ScalarType dtype, int64_t rows, int64_t capacity)
      : model_(*chat.loaded.model),
        decoder_(model_.decoder()),
        rows_(decoder_, rows, capacity, at::TensorOptions().dtype(dtype)) {}

  void add(const std::vector<Sample>& samples) {
    const Batch batch = pack(samples, 0, 0);
    const auto first = samples_.size();
    samples_.insert(samples_.end(), samples.begin(), samples.end());
    compare(first, rows_.add(model_.embed(batch, kPlain), batch, kPlain));
  }

  // The next token of row r of the n-th step is a fixed mix of both.
  void step() {
    std::vector<int64_t> ids;
    for (size_t r = 0; r < samples_.size(); ++r) {
      ids.push_back(static_cast<int64_t>((r * 131 + samples_[r].ids.size() * 17) % kVocabulary));
      samples_[r].ids.push_back(ids.back());
      samples_[r].labels.push_back(kIgnoreIndex);
    }
    rows_.put(0, at::tensor(ids, at::kLong));
    compare(0, rows_.step(kPlain));
  }

  void remove(size_t row) {
    rows_.remove(static_cast<int64_t>(row));
    samples_[row] = samples_.back();
    samples_.pop_back();
    ASSERT_EQ(rows_.size(), static_cast<int64_t>(samples_.size()));
  }

  double worst() const { return worst_; }

 private:
  void compare(size_t first, const at::Tensor& logits) {
    ASSERT_EQ(logits.size(0), static_cast<int64_t>(samples_.size() - first));
    for (size_t i = first; i < samples_.size(); ++i) {
      const at::Tensor hidden = model_.hidden(pack({samples_[i]}, 0, 0), kPlain);
      const at::Tensor whole = decoder_.logits(hidden, kPlain)[-1];
      worst_ = std::max(worst_, relative_l2(logits[static_cast<int64_t>(i - first)], whole));
    }
  }

  const MiniGemini& model_;
  const Decoder& decoder_;
  RowDecoder rows_;
  std::vector<Sample> samples_;
  double worst_ = 0;
};

TEST(RowDecoder, RowsThatComeAndGoEqualTheFullForward) {
  for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, {at::kDouble, 1e-12}}) {
    const TinyChat chat(dtype);
    const auto sample = [&](int64_t index, int64_t pictures, int64_t tokens) {
      return tiny_sample(*chat.loaded.model, index, pictures, tokens);
    };
    Feeder feeder(chat, dtype, 4, 60);
    feeder.add({sample(1, 1, 20), sample(2, 0, 5), sample(3, 2, 8)});
    feeder.step();
    feeder.add({sample(4, 0, 31)});
    for (int i = 0; i < 3; ++i) feeder.step();
    feeder.remove(1);  // the last takes its place
    feeder.step();
    feeder.remove(2);  // the last itself
    feeder.step();
    feeder.add({sample(5, 1, 6), sample(6, 0, 7)});  // where others have been
    feeder.step();
    feeder.remove(0);
    feeder.remove(0);
    feeder.step();
    EXPECT_LE(feeder.worst(), tolerance) << dtype;
  }
}

TEST(RowDecoder, ASingleTokenIsAPromptToo) {
  const TinyChat chat;
  Sample bos;
  bos.ids = {1};
  bos.labels = {kIgnoreIndex};
  Feeder feeder(chat, at::kFloat, 2, 5);
  feeder.add({bos, bos});
  for (int i = 0; i < 4; ++i) feeder.step();
  EXPECT_LE(feeder.worst(), 1e-5);
}

TEST(RowDecoder, LimitsAreChecked) {
  const TinyChat chat;
  const Decoder& decoder = chat.loaded.model->decoder();
  const Batch batch = pack({tiny_sample(*chat.loaded.model, 1, 0, 9)}, 0, 0);
  const at::Tensor x = chat.loaded.model->embed(batch, kPlain);
  EXPECT_THROW(RowDecoder(decoder, 1, 9, at::kFloat).add(x, batch, kPlain), InternalError);
  RowDecoder rows(decoder, 1, 10, at::kFloat);
  rows.add(x, batch, kPlain);
  EXPECT_THROW(rows.add(x, batch, kPlain), InternalError);
  EXPECT_THROW(rows.step(kPlain), InternalError);  // BOS and nine tokens fill the row
  EXPECT_THROW(rows.remove(1), InternalError);
}

TEST(RowDecoder, BeamsGoOnFromRowsThatWereOthers) {
  const TinyChat chat;
  const MiniGemini& model = *chat.loaded.model;
  const Sample prompt = tiny_sample(model, 1, 1, 9);
  const auto length = static_cast<int64_t>(prompt.ids.size());
  const Batch batch = pack({prompt}, 0, 0);
  RowDecoder rows(model.decoder(), 3, length + 5, at::kFloat);
  rows.add(model.embed(batch, kPlain), batch, kPlain);
  rows.fork(3);
  std::vector<std::vector<int64_t>> held(3);
  const std::vector<std::vector<int64_t>> parents = {
      {0, 0, 0}, {0, 1, 2}, {2, 0, 0}, {1, 1, 0}, {2, 2, 2}};
  for (size_t step = 0; step < parents.size(); ++step) {
    rows.reorder(parents[step], length);
    std::vector<std::vector<int64_t>> next;
    std::vector<int64_t> ids;
    for (size_t r = 0; r < 3; ++r) {
      next.push_back(held[static_cast<size_t>(parents[step][r])]);
      ids.push_back(static_cast<int64_t>(100 * step + 10 * r + 7));
      next.back().push_back(ids.back());
    }
    held = next;
    rows.put(0, at::tensor(ids, at::kLong));
    const at::Tensor logits = rows.step(kPlain);
    for (size_t r = 0; r < 3; ++r) {
      Sample whole = prompt;
      whole.ids.insert(whole.ids.end(), held[r].begin(), held[r].end());
      whole.labels.resize(whole.ids.size(), kIgnoreIndex);
      const at::Tensor hidden = model.hidden(pack({whole}, 0, 0), kPlain);
      EXPECT_TRUE(near_l2(logits[static_cast<int64_t>(r)],
                          model.decoder().logits(hidden, kPlain)[-1], 1e-5))
          << step << ' ' << r;
    }
  }
  EXPECT_THROW(rows.reorder({0, 1}, length), InternalError);
  EXPECT_THROW(rows.fork(2), InternalError);
}

std::string picture(const char* name) { return cat(MGM_SOURCE_DIR "/data/embedded/images/", name); }

std::vector<BatchPrompt> some_prompts() {
  const std::vector<std::pair<std::string, std::vector<std::string>>> questions = {
      {"What is in the picture?", {picture("apple.png")}},
      {"Say hello.", {}},
      {"<image>\n<image>\nWhich of the two pictures is the larger one, and why do you think so?",
       {picture("seal.jpg"), picture("bus_red.webp")}},
      {"And a story of seventeen red apples beside a blue bus, please.", {}},
      {"Where?", {picture("bus_red.webp")}},
      {"Who?", {}},
      {"How many are there in the picture?", {picture("seal.jpg")}}};
  std::vector<BatchPrompt> out;
  for (const auto& [text, images] : questions) {
    out.push_back({{{"human", text}}, images, cat("test:", out.size() + 1)});
  }
  return out;
}

std::map<size_t, Answer> answers_of(const TinyChat& chat, const SamplingConfig& sampling,
                                    int64_t batch_size, BatchStats* stats = nullptr) {
  std::map<size_t, Answer> out;
  const BatchStats s =
      Generator(chat.loaded, sampling)
          .answer_batch(some_prompts(), batch_size, [&](size_t i, const Answer& answer) {
            EXPECT_TRUE(out.emplace(i, answer).second) << i;
          });
  if (stats) *stats = s;
  EXPECT_EQ(out.size(), some_prompts().size());
  return out;
}

Answer alone(const TinyChat& chat, const SamplingConfig& sampling, const BatchPrompt& prompt) {
  std::vector<Picture> pictures;
  for (const std::string& path : prompt.images) {
    pictures.push_back(load_picture(path, chat.loaded.description));
  }
  return Generator(chat.loaded, sampling)
      .answer(prompt.turns, encode_pictures(chat.loaded, pictures, kPlain));
}

// The end token takes the place of one that answers hold at different places, so that rows end at
// different times.
void let_answers_end(const TinyChat& chat) {
  std::map<int32_t, std::set<size_t>> places;
  for (const auto& [i, answer] : answers_of(chat, greedy(30), 1)) {
    for (size_t t = 0; t < answer.ids.size(); ++t) places[answer.ids[t]].insert(t);
  }
  const auto most = std::max_element(
      places.begin(), places.end(),
      [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  const int64_t end = chat.loaded.tokenizer->eos_id();
  const at::Tensor head = chat.weight("lm_head.weight");
  const at::Tensor row = head[most->first].clone();
  head[most->first].copy_(head[end]);
  head[end].copy_(row);
}

TEST(GeneratorBatch, EqualsOneAtATime) {
  const TinyChat chat;
  let_answers_end(chat);
  const std::vector<BatchPrompt> prompts = some_prompts();
  std::vector<Answer> expected;
  std::set<size_t> lengths;
  size_t stopped = 0;
  for (const BatchPrompt& prompt : prompts) {
    expected.push_back(alone(chat, greedy(30), prompt));
    lengths.insert(expected.back().ids.size());
    stopped += expected.back().stopped;
  }
  ASSERT_GE(lengths.size(), 3u);
  ASSERT_GE(stopped, 2u);
  for (const int64_t batch_size : {1, 2, 3, 8}) {
    BatchStats stats;
    const std::map<size_t, Answer> actual = answers_of(chat, greedy(30), batch_size, &stats);
    int64_t tokens = 0;
    for (size_t i = 0; i < prompts.size(); ++i) {
      EXPECT_EQ(actual.at(i).ids, expected[i].ids) << i << " of " << batch_size;
      EXPECT_EQ(actual.at(i).text, expected[i].text) << i;
      EXPECT_EQ(actual.at(i).stopped, expected[i].stopped) << i;
      tokens += static_cast<int64_t>(expected[i].ids.size());
    }
    EXPECT_EQ(stats.rows, std::min<int64_t>(batch_size, 7));
    EXPECT_EQ(stats.prompts, 7);
    EXPECT_EQ(stats.step_tokens + stats.prompts, tokens);
    EXPECT_GE(stats.steps * stats.rows, stats.step_tokens);
    EXPECT_GT(stats.context_tokens, stats.step_tokens);
  }
}

TEST(GeneratorBatch, WhatIsSampledDependsOnTheQuestionAlone) {
  const TinyChat chat;
  SamplingConfig sampling = greedy(12);
  sampling.temperature = 1;
  sampling.top_k = 50;
  sampling.repetition_penalty = 1.2;
  sampling.seed = 3;
  const std::map<size_t, Answer> single = answers_of(chat, sampling, 1);
  const std::map<size_t, Answer> several = answers_of(chat, sampling, 3);
  for (const auto& [i, answer] : single) EXPECT_EQ(several.at(i).ids, answer.ids) << i;
  EXPECT_EQ(single.at(0).ids, alone(chat, sampling, some_prompts()[0]).ids);
}

TEST(GeneratorBatch, BeamSearchAnswersAsItDoesAlone) {
  const TinyChat chat;
  SamplingConfig beams = greedy(9);
  beams.num_beams = 3;
  BatchStats stats;
  const std::map<size_t, Answer> found = answers_of(chat, beams, 8, &stats);
  EXPECT_EQ(stats.rows, 3);
  std::string streamed;
  const Answer single = Generator(chat.loaded, beams)
                            .answer(some_prompts()[1].turns, {},
                                    [&](const std::string& piece) { streamed += piece; });
  EXPECT_EQ(single.ids, found.at(1).ids);
  EXPECT_EQ(streamed, single.text);
  size_t other = 0;
  for (const auto& [i, answer] : answers_of(chat, greedy(9), 8))
    other += answer.ids != found.at(i).ids;
  EXPECT_GT(other, 0u);
}

// Stages of one device: everything that lies between devices is done, and changes nothing.
TEST(GeneratorBatch, StagesAnswerAsTheWholeDoes) {
  for (const bool tied : {false, true}) {
    const auto changed = [&](RunConfig& config) {
      config.model.llm.num_layers = 5;
      config.model.llm.tie_embeddings = tied;
    };
    const TinyChat whole(at::kFloat, changed);
    const TinyChat parts(at::kFloat, changed);
    parts.loaded.model->split_decoder({{0, at::kCPU}, {1, at::kCPU}, {4, at::kCPU}});
    SamplingConfig beams = greedy(9);
    beams.num_beams = 3;
    for (const SamplingConfig& sampling : {greedy(20), beams}) {
      const std::map<size_t, Answer> expected = answers_of(whole, sampling, 3);
      for (const auto& [i, answer] : answers_of(parts, sampling, 3)) {
        EXPECT_EQ(answer.ids, expected.at(i).ids) << i << (tied ? " tied" : "");
      }
    }
  }
}

TEST(GeneratorBatch, TheLoadIsThatOfTheCache) {
  const TinyChat chat;
  SamplingConfig beams = greedy(9);
  beams.num_beams = 3;
  for (const SamplingConfig& sampling : {greedy(9), beams}) {
    for (const int64_t batch_size : {2, 8}) {
      BatchStats stats;
      answers_of(chat, sampling, batch_size, &stats);
      const DecodeLoad load =
          Generator::batch_load(chat.loaded, sampling, some_prompts(), batch_size);
      EXPECT_EQ(load.rows, stats.rows);
      EXPECT_EQ(load.capacity, stats.capacity);
      EXPECT_GE(load.prompt_tokens, stats.capacity - 9);
      EXPECT_LE(load.prompt_tokens, stats.prompt_tokens);
    }
  }
  EXPECT_EQ(Generator::chat_load(chat.loaded, beams).rows, 3);
  EXPECT_EQ(Generator::chat_load(chat.loaded, greedy(9)).capacity, 512);  // all it takes
  const TinyChat long_context(at::kFloat, [](RunConfig& c) { c.model.llm.max_positions = 131072; });
  EXPECT_EQ(Generator::chat_load(long_context.loaded, greedy(9)).capacity, 4096);
}

TEST(GeneratorBatch, BeamsRefuseWhatIsNotFinite) {
  const TinyChat chat;
  SamplingConfig beams = greedy(4);
  beams.num_beams = 2;
  chat.weight("lm_head.weight")[17][3] = NAN;
  EXPECT_THROW(Generator(chat.loaded, beams).answer(some_prompts()[1].turns, {}), NonFiniteError);
}

TEST(GeneratorBatch, TheCacheIsForTheLongestThereCanBe) {
  TinyChat chat;
  BatchStats stats;
  answers_of(chat, greedy(10), 2, &stats);
  const LlmConfig& llm = chat.loaded.description.model.llm;
  EXPECT_EQ(stats.cache_bytes, static_cast<uint64_t>(2 * stats.capacity * llm.num_layers * 2 *
                                                     llm.num_kv_heads * llm.head_dim * 4));
  int64_t longest = 0;
  const PromptEncoder encoder(chat.loaded, 10);
  for (const BatchPrompt& p : some_prompts()) {
    longest = std::max(
        longest, encoder.encode(p.turns, static_cast<int64_t>(p.images.size()), "test").length);
  }
  EXPECT_EQ(stats.capacity, longest + 10);
}

TEST(GeneratorBatch, ErrorsNameThePrompt) {
  TinyChat chat;
  const auto fails = [&](const std::vector<BatchPrompt>& prompts, const std::string& says) {
    size_t answered = 0;
    try {
      Generator(chat.loaded, greedy(4)).answer_batch(prompts, 2, [&](size_t, const Answer&) {
        ++answered;
      });
      ADD_FAILURE() << "no error";
    } catch (const DataError& e) {
      EXPECT_EQ(std::string(e.what()).rfind(says, 0), 0u) << e.what();
    }
    return answered;
  };
  std::vector<BatchPrompt> prompts = some_prompts();
  prompts[5].turns[0].value = "<image> Who?";
  EXPECT_EQ(fails(prompts, "test:6: 1 <image> marker"), 0u);
  prompts = some_prompts();
  for (int i = 0; i < 9; ++i) prompts[6].turns[0].value += prompts[6].turns[0].value;
  EXPECT_EQ(fails(prompts, "test:7: "), 0u);
  prompts = some_prompts();
  prompts[4].images = {picture("none.png")};
  std::map<size_t, std::string> errors;
  Generator(chat.loaded, greedy(4)).answer_batch(prompts, 2, [&](size_t i, const Answer& answer) {
    EXPECT_TRUE(errors.emplace(i, answer.error).second);
  });
  ASSERT_EQ(errors.size(), prompts.size());
  for (const auto& [i, error] : errors) {
    EXPECT_EQ(error.substr(0, 8), i == 4 ? "test:5: " : "") << i;
  }
  EXPECT_EQ(Generator(chat.loaded, greedy(4)).answer_batch({}, 2, {}).prompts, 0);
}

}  // namespace
}  // namespace mgm
