// Generation: the cache against the full forward, ends of answers, limits, markers.
#include "infer/generator.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "infer/row_decoder.h"
#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

const std::vector<Turn> kQuestion = {{"human", "What is in the picture?"}};

TEST(Generator, CacheFedInAnyPiecesEqualsTheFullForward) {
  for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, {at::kDouble, 1e-12}}) {
    const TinyChat chat(dtype);
    const Decoder& decoder = chat.loaded.model->decoder();
    const Sample sample = tiny_sample(*chat.loaded.model, 3, 1, 20);
    const Batch batch = pack({sample}, 0, 0);
    const int64_t length = batch.seq.total();
    ASSERT_EQ(length, 30);
    const at::Tensor x = chat.loaded.model->embed(batch, kPlain);
    const at::Tensor whole =
        decoder.logits(chat.loaded.model->hidden(batch, kPlain), kPlain).to(at::kDouble);
    for (const std::vector<int64_t>& pieces :
         {std::vector<int64_t>{30}, {29, 1}, {1, 1, 28}, {11, 1, 7, 1, 10}}) {
      KvCache cache = decoder.make_cache(1, length, at::TensorOptions().dtype(dtype));
      std::vector<at::Tensor> rows;
      int64_t begin = 0;
      for (const int64_t count : pieces) {
        SeqInfo seq;
        seq.offsets = {0, count};
        seq.cu_seqlens = at::tensor({0, static_cast<int>(count)}, at::kInt);
        seq.max_length = count;
        rows.push_back(decoder.blocks(x.narrow(0, begin, count),
                                      batch.positions.narrow(0, begin, count), seq, kPlain,
                                      {&cache}));
        begin += count;
      }
      const at::Tensor cached = decoder.logits(at::cat(rows), kPlain).to(at::kDouble);
      const double error = ((cached - whole).norm() / whole.norm()).item<double>();
      EXPECT_LE(error, tolerance) << pieces.size() << " pieces";
    }
  }
}

TEST(Generator, GreedyEqualsTheFullForwardTokenByToken) {
  const TinyChat chat;
  const Generator generator(chat.loaded, greedy(12));
  for (const int64_t count : {0, 1, 3}) {
    std::string markers;
    for (int64_t i = 0; i < count; ++i) markers += "<image>\n";
    const std::vector<Turn> turns = {
        {"human", markers + "What is this?"}, {"gpt", "A bus."}, {"human", "And which colour?"}};
    const Answer answer = generator.answer(turns, chat.visual(count));
    EXPECT_EQ(answer.ids, chat.without_cache(turns, count, 12)) << count << " pictures";
    EXPECT_GE(answer.ids.size(), 2u);
  }
}

TEST(Generator, StreamedPiecesMakeTheAnswerAndRepeat) {
  const TinyChat chat;
  const Generator generator(chat.loaded, greedy(40));
  std::string streamed;
  const Answer first = generator.answer(kQuestion, chat.visual(1),
                                        [&](const std::string& piece) { streamed += piece; });
  EXPECT_EQ(trim(streamed), first.text);
  EXPECT_FALSE(first.text.empty());
  const Answer again = generator.answer(kQuestion, chat.visual(1));
  EXPECT_EQ(again.ids, first.ids);
  EXPECT_EQ(again.text, first.text);
}

TEST(Generator, AnEndTokenEndsTheAnswer) {
  const TinyChat chat;
  const Generator generator(chat.loaded, greedy(9));
  const Answer before = generator.answer(kQuestion, chat.visual(1));
  ASSERT_FALSE(before.stopped);
  ASSERT_EQ(before.ids.size(), 9u);
  // The end token takes the place of the answer's first token.
  const int64_t first = before.ids[0], end = chat.loaded.tokenizer->eos_id();
  const at::Tensor head = chat.weight("lm_head.weight");
  const at::Tensor row = head[first].clone();
  head[first].copy_(head[end]);
  head[end].copy_(row);
  const Answer after = generator.answer(kQuestion, chat.visual(1));
  EXPECT_TRUE(after.stopped);
  EXPECT_EQ(after.ids, std::vector<int32_t>{static_cast<int32_t>(end)});
  EXPECT_EQ(after.text, "");
}

TEST(Generator, PaddingRowsOfTheHeadAreNeverChosen) {
  const TinyChat chat;
  const Generator generator(chat.loaded, greedy(5));
  const Answer before = generator.answer(kQuestion, chat.visual(1));
  const at::Tensor head = chat.weight("lm_head.weight");
  head[kRows - 1].copy_(head[before.ids[0]] * 10);
  head[kVocabulary].copy_(head[before.ids[0]] * 10);
  EXPECT_EQ(generator.answer(kQuestion, chat.visual(1)).ids, before.ids);
}

TEST(Generator, TheContextIsALimit) {
  TinyChat chat;
  const ConversationEncoder encoder(load_template("v1"), *chat.loaded.tokenizer,
                                    MarkerPolicy::kError);
  const auto length = static_cast<int64_t>(encoder.encode_prompt(kQuestion, 0, "test").ids.size());
  int64_t& limit = chat.loaded.description.model.llm.max_positions;
  limit = length + 3;
  const Answer cut = Generator(chat.loaded, greedy(9)).answer(kQuestion, {});
  EXPECT_EQ(cut.ids.size(), 3u);
  EXPECT_FALSE(cut.stopped);
  limit = length;
  try {
    Generator(chat.loaded, greedy(9)).answer(kQuestion, {});
    ADD_FAILURE() << "no error";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find(cat(length, " tokens")), std::string::npos) << e.what();
  }
}

TEST(Generator, MarkersStandForThePictures) {
  const TinyChat chat;
  const Generator generator(chat.loaded, greedy(4));
  const std::vector<Turn> marked = {{"human", "<image>\n<image>\nWhat is in the picture?"}};
  EXPECT_EQ(generator.answer(kQuestion, chat.visual(2)).ids,
            generator.answer(marked, chat.visual(2)).ids);
  EXPECT_THROW(generator.answer(marked, chat.visual(1)), DataError);
  EXPECT_THROW(generator.answer(marked, {}), DataError);
  EXPECT_FALSE(encode_pictures(chat.loaded, {}, kPlain).defined());
}

// By its number in the conversation: else every answer would fall the same way.
TEST(Generator, AnswersOfAConversationDrawTheirOwnNumbers) {
  const TinyChat chat;
  SamplingConfig sampling = greedy(12);
  sampling.temperature = 50;  // near to even: the numbers decide
  sampling.seed = 3;
  const Generator generator(chat.loaded, sampling);
  const auto first = [&] { return generator.answer({{"human", "Hi"}}, {}).ids; };
  const auto second = [&] {
    return generator.answer({{"human", "Hi"}, {"gpt", "Ho."}, {"human", "Hi"}}, {}).ids;
  };
  EXPECT_EQ(first(), first());
  EXPECT_EQ(second(), second());
  EXPECT_NE(first(), second());
}

// The text for a picture's place, written by the model: the next question is not about a picture.
TEST(Generator, AnswersHoldNoMarkers) {
  EXPECT_EQ(answer_turn("A <imag> e").value, "A <imag> e");
  const Turn turn = answer_turn("<image>, a <image>.");
  EXPECT_EQ(turn.from, "gpt");
  EXPECT_EQ(turn.value, "< image>, a < image>.");
  const TinyChat chat;
  const std::vector<Turn> turns = {{"human", "Hi"}, turn, {"human", "And now?"}};
  EXPECT_FALSE(Generator(chat.loaded, greedy(4)).answer(turns, {}).ids.empty());
}

// Refused, not promised by the system and killed later.
TEST(Generator, ACacheBeyondTheMemoryIsRefused) {
  const TinyChat chat;
  try {
    RowDecoder(chat.loaded.model->decoder(), 1'000'000, 1'000'000,
               at::TensorOptions(at::kCPU).dtype(at::kFloat));
    ADD_FAILURE() << "held";
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("no memory for a cache of 1000000 sequences"),
              std::string::npos)
        << e.what();
  }
}

TEST(Generator, PicturesTogetherEqualPicturesAlone) {
  const TinyChat chat;
  const std::vector<Picture> pictures = chat.pictures(3);
  const at::Tensor together = chat.visual(3);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor alone =
        encode_pictures(chat.loaded, {pictures[static_cast<size_t>(i)]}, kPlain)[0];
    const double error = ((together[i] - alone).norm() / alone.norm()).item<double>();
    EXPECT_LE(error, 1e-5) << i;
  }
}

TEST(Generator, NotFiniteIsAnError) {
  const TinyChat chat;
  chat.weight("lm_head.weight")[17][3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(Generator(chat.loaded, greedy(4)).answer(kQuestion, {}), NonFiniteError);
}

TEST(Generator, UnknownTemplateIsNamed) {
  TinyChat chat;
  chat.loaded.description.text.template_name = "vicuna_v7";
  EXPECT_THROW(Generator(chat.loaded, greedy(4)), ConfigError);
}

}  // namespace
}  // namespace mgm
