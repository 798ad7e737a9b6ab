// Conversations that grow too long: which turns are left out, and which stay.
#include "infer/prompt.h"

#include <gtest/gtest.h>

#include "unit/infer/tiny_chat.h"

namespace mgm {
namespace {

class TrimTest : public testing::Test {
 protected:
  // Room for the answer: `room` of the context, which takes `tokens`.
  TrimmedTurns trim(const std::vector<Turn>& turns, int64_t pictures, int64_t tokens,
                    int64_t room = 1) {
    chat_.loaded.description.model.llm.max_positions = tokens;
    return PromptEncoder(chat_.loaded, room).trim(turns, pictures, "test");
  }

  int64_t length(const std::vector<Turn>& turns, int64_t pictures = 0) {
    chat_.loaded.description.model.llm.max_positions = 100000;
    return PromptEncoder(chat_.loaded, 1).encode(turns, pictures, "test").length;
  }

  TinyChat chat_;
};

std::vector<std::string> texts(const std::vector<Turn>& turns) {
  std::vector<std::string> out;
  for (const Turn& turn : turns) out.push_back(turn.value);
  return out;
}

using Texts = std::vector<std::string>;

const std::vector<Turn> kTurns = {{"human", "The first question, a long one."},
                                  {"gpt", "One."},
                                  {"human", "The second question?"},
                                  {"gpt", "Two, and more than that."},
                                  {"human", "Third?"},
                                  {"gpt", "Three."},
                                  {"human", "And now?"}};

std::vector<Turn> without(std::vector<Turn> turns, size_t first, size_t count) {
  const auto begin = turns.begin() + static_cast<std::ptrdiff_t>(first);
  turns.erase(begin, begin + static_cast<std::ptrdiff_t>(count));
  return turns;
}

TEST_F(TrimTest, WhatFitsIsLeftAlone) {
  const int64_t whole = length(kTurns);
  const TrimmedTurns kept = trim(kTurns, 0, whole + 1);
  EXPECT_EQ(texts(kept.turns), texts(kTurns));
  EXPECT_EQ(kept.dropped, 0);
  EXPECT_EQ(kept.tokens_before, whole);
  EXPECT_EQ(kept.tokens_after, whole);
}

TEST_F(TrimTest, TheOldestPairsGoFirst) {
  const int64_t whole = length(kTurns);
  for (size_t pairs = 1; pairs <= 3; ++pairs) {
    const std::vector<Turn> expected = without(kTurns, 0, 2 * pairs);
    const int64_t left = length(expected);
    const TrimmedTurns kept = trim(kTurns, 0, left + 1);
    EXPECT_EQ(texts(kept.turns), texts(expected));
    EXPECT_EQ(kept.dropped, static_cast<int64_t>(pairs));
    EXPECT_EQ(kept.tokens_before, whole);
    EXPECT_EQ(kept.tokens_after, left);
  }
}

TEST_F(TrimTest, ThereIsRoomForTheAnswer) {
  const int64_t left = length(without(kTurns, 0, 2));
  EXPECT_EQ(trim(kTurns, 0, left + 9, 9).dropped, 1);
  EXPECT_EQ(trim(kTurns, 0, left + 8, 9).dropped, 2);
  // Of a quarter of the context at most; and what cannot be left out may take that room.
  EXPECT_EQ(trim(kTurns, 0, 4 * left, 100000).dropped, 0);
  const TrimmedTurns tight = trim(kTurns, 0, length(without(kTurns, 0, 6)) + 1, 100000);
  EXPECT_EQ(texts(tight.turns), Texts{"And now?"});
}

TEST_F(TrimTest, TurnsWithPicturesStay) {
  std::vector<Turn> turns = kTurns;
  turns[2].value = "<image>\n" + turns[2].value;
  const std::vector<Turn> expected = {turns[2], turns[3], turns[6]};
  const TrimmedTurns kept = trim(turns, 1, length(expected, 1) + 1);
  EXPECT_EQ(texts(kept.turns), texts(expected));
  EXPECT_EQ(kept.dropped, 2);
  // A picture no turn mentions belongs to the first one, which then stays.
  const TrimmedTurns first = trim(kTurns, 1, length(without(kTurns, 2, 4), 1) + 1);
  EXPECT_EQ(texts(first.turns),
            (Texts{"<image>\n" + kTurns[0].value, kTurns[1].value, kTurns[6].value}));
}

TEST_F(TrimTest, WhatStaysMayBeTooLong) {
  std::vector<Turn> turns = kTurns;
  turns[0].value = "<image>\n" + turns[0].value;
  const int64_t least = length({turns[0], turns[1], turns[6]}, 1);
  EXPECT_EQ(trim(turns, 1, least + 1).dropped, 2);
  try {
    trim(turns, 1, least);
    ADD_FAILURE() << "no error";
  } catch (const DataError& e) {
    const std::string message = e.what();
    EXPECT_EQ(message.rfind(cat("test: ", least, " tokens, of "), 0), 0u) << message;
    EXPECT_NE(message.find("turns with pictures stay"), std::string::npos) << message;
  }
  EXPECT_THROW(trim({kTurns[6]}, 0, 3), DataError);
}

}  // namespace
}  // namespace mgm
