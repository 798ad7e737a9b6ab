#include "data/annotations.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/hash.h"
#include "data/words.h"
#include "unit/data/test_files.h"

namespace mgm {
namespace {

const std::string kTurns = R"("conversations": [{"from": "human", "value": "<image>\nWhat?"},)"
                           R"( {"from": "gpt", "value": "A cat."}])";

class Annotations : public ::testing::Test {
 protected:
  AnnotationIndex index(std::string_view text) {
    return AnnotationIndex({{dir.write("a.json", text), "images", {}}}, 2);
  }
  std::string open_error(std::string_view text) {
    return relative(message_of<DataError>([&] { index(text); }));
  }
  std::string record_error(std::string_view text, int64_t i = 0) {
    const AnnotationIndex built = index(text);
    EXPECT_TRUE(built.summary(i).malformed);
    return relative(message_of<DataError>([&] { built.record(i); }));
  }
  std::string relative(const std::string& message) {
    return replace_all(message, dir.path(""), "");
  }
  TempDir dir;
};

TEST_F(Annotations, ReadsRecords) {
  const AnnotationIndex built =
      index("\xEF\xBB\xBF [ {\"id\": \"a\\n\\u00e9\", \"image\": \"x/y.jpg\", " + kTurns + "},\n" +
            R"({"id": 7, "model": {"a": [1, 2.5, null, "]}"]}, )" + kTurns + "}, " +
            R"({"image": ["p", "q"], )" + kTurns + R"(, "id": -3.5} , {"image": null, )" + kTurns +
            "} ] \n");
  ASSERT_EQ(built.size(), 4);
  EXPECT_EQ(built.malformed(), 0);
  EXPECT_EQ(built.first_malformed(), -1);
  const Record first = built.record(0);
  EXPECT_EQ(first.id, "a\né");
  EXPECT_EQ(first.images, std::vector<std::string>{"x/y.jpg"});
  ASSERT_EQ(first.turns.size(), 2u);
  EXPECT_EQ(first.turns[0].from, "human");
  EXPECT_EQ(first.turns[0].value, "<image>\nWhat?");
  EXPECT_EQ(first.turns[1].from, "gpt");
  EXPECT_EQ(first.turns[1].value, "A cat.");
  EXPECT_EQ(built.record(1).id, "7");
  EXPECT_TRUE(built.record(1).images.empty());
  EXPECT_EQ(built.record(2).images, (std::vector<std::string>{"p", "q"}));
  EXPECT_EQ(built.record(2).id, "-3.5");
  EXPECT_EQ(built.record(3).id, "");
  EXPECT_EQ(built.summary(0).words, 4);
  EXPECT_EQ(built.summary(2).images, 2);
  EXPECT_EQ(built.summary(3).images, 0);
}

TEST_F(Annotations, QuotesAndBackslashesDoNotMoveTheBorders) {
  const std::string tricky = R"({"conversations": [{"from": "human", "value": "\\\"}, {\\"},)"
                             R"({"from": "gpt", "value": "\\"}]})";
  const AnnotationIndex built = index("[" + tricky + "," + tricky + "]");
  ASSERT_EQ(built.size(), 2);
  EXPECT_EQ(built.record(1).turns[0].value, "\\\"}, {\\");
  EXPECT_EQ(built.record(1).turns[1].value, "\\");
}

TEST_F(Annotations, SeveralSourcesAreConcatenated) {
  const std::string one = dir.write("one.json", "[{" + kTurns + "}]");
  const std::string none = dir.write("none.json", " [ ] ");
  const std::string two = dir.write("two.json", "[{\"id\": 0, " + kTurns + "},{" + kTurns + "}]");
  const AnnotationIndex built({{one, "i1", {}}, {none, "i0", {}}, {two, "i2", {}}});
  ASSERT_EQ(built.size(), 3);
  EXPECT_EQ(built.source(0).images, "i1");
  EXPECT_EQ(built.source(1).images, "i2");
  EXPECT_EQ(built.where(2), two + ": record 1");
  EXPECT_EQ(built.record(1).index, 1);
  ASSERT_EQ(built.file_hashes().size(), 3u);
  EXPECT_EQ(built.file_hashes()[2], hash_file(two));
  const AnnotationIndex other({{two, "i2", {}}, {one, "i1", {}}});
  EXPECT_NE(built.identity(), other.identity());
  EXPECT_EQ(AnnotationIndex({}).size(), 0);
}

// Record borders near the end of the last page are read from a copy.
TEST_F(Annotations, AnyFileSizeAroundAPage) {
  const std::string record = "{" + kTurns + "}";
  for (size_t size = 4096 - 70; size <= 4096 + 2; ++size) {
    const std::string text = "[" + std::string(size - record.size() - 2, ' ') + record + "]";
    ASSERT_EQ(text.size(), size);
    EXPECT_EQ(index(text).record(0).turns[1].value, "A cat.");
  }
}

TEST_F(Annotations, NotAnArrayOfRecords) {
  EXPECT_EQ(open_error(""), "a.json:1:1: the file is empty; expected a JSON array of records");
  EXPECT_EQ(open_error(" \n "), "a.json:1:1: the file is empty; expected a JSON array of records");
  EXPECT_EQ(open_error("\n {" + kTurns + "}\n{" + kTurns + "}"),
            "a.json:2:2: expected '[', the start of a JSON array of records, got '{'; one record "
            "per line (JSON lines) has to be joined into one array");
  EXPECT_EQ(open_error(std::string("\0[]", 3)),
            "a.json:1:1: expected '[', the start of a JSON array of records, got byte 0x00");
  EXPECT_EQ(open_error("[{" + kTurns + "},\n 7]"), "a.json:2:2: record 1: expected '{', got '7'");
  EXPECT_EQ(open_error("[{" + kTurns + "},]"),
            cat("a.json:1:", kTurns.size() + 5, ": record 1: expected '{', got ']'"));
  EXPECT_EQ(open_error("[{" + kTurns + "}\n{" + kTurns + "}]"),
            "a.json:2:1: expected ',' or ']' after record 0, got '{'");
  EXPECT_EQ(open_error("[]\n\n x"),
            "a.json:3:2: expected the end of the file after the closing ']', got 'x'");
  EXPECT_NE(message_of<DataError>([&] {
              AnnotationIndex({{dir.path("no.json"), "", {}}});
            }).find("no.json: cannot open"),
            std::string::npos);
}

TEST_F(Annotations, CutAnywhere) {
  const std::string whole = "[{\"id\": 1, " + kTurns + "},\n{\"id\": 2, " + kTurns + "}]";
  EXPECT_EQ(index(whole).size(), 2);
  for (size_t size = 1; size < whole.size(); ++size) {
    const std::string error = open_error(whole.substr(0, size));
    EXPECT_EQ(error.substr(0, 7), "a.json:") << size << ": " << error;
  }
  EXPECT_EQ(open_error(whole.substr(0, whole.size() - 1)),
            cat("a.json:2:", kTurns.size() + 12,
                ": the file ends after 2 records without the closing ']'; it was cut"));
  const std::string inside = open_error(whole.substr(0, whole.size() - 5));
  EXPECT_EQ(inside, cat("a.json:2:", kTurns.size() + 8,
                        ": record 1: not valid JSON: invalid "
                        "string: missing closing quote; last read: '\"A cat.'"));
}

// The quote that is not escaped swallows the next record's beginning; the error names the record.
TEST_F(Annotations, UnescapedQuoteIsNamedWhereItIs) {
  const std::string bad = R"({"id": 1, "conversations": [{"from": "human", "value": "a "b"}]})";
  const std::string error = open_error("[\n{" + kTurns + "},\n" + bad + ",\n{" + kTurns + "}]");
  EXPECT_EQ(error.substr(0, 27), "a.json:3:60: record 1: not ") << error;
}

TEST_F(Annotations, BrokenRecordsAreCountedAndNamed) {
  const AnnotationIndex built =
      index("[{" + kTurns + "},\n{\"id\": tru, " + kTurns + "},\n{\"id\":1}]");
  EXPECT_EQ(built.size(), 3);
  EXPECT_EQ(built.malformed(), 2);
  EXPECT_EQ(built.first_malformed(), 1);
  EXPECT_FALSE(built.summary(0).malformed);
  EXPECT_EQ(relative(message_of<DataError>([&] { built.record(2); })),
            "a.json:3:1: record 2: has no 'conversations'");
  EXPECT_EQ(relative(message_of<DataError>([&] { built.record(1); })).substr(0, 37),
            "a.json:2:11: record 1: not valid JSON");
}

TEST_F(Annotations, WrongTypes) {
  const auto error = [&](const std::string& body) { return record_error("[{" + body + "}]"); };
  EXPECT_EQ(error(""), "a.json:1:2: record 0: has no 'conversations'");
  EXPECT_EQ(error(R"("id": true, )" + kTurns),
            "a.json:1:2: record 0: id: expected a text or a number, got true or false");
  EXPECT_EQ(error(R"("image": 3, )" + kTurns),
            "a.json:1:2: record 0: image: expected a path or a list of paths, got a number");
  EXPECT_EQ(error(R"("image": ["a", {}], )" + kTurns),
            "a.json:1:2: record 0: image[1]: expected a text, got an object");
  EXPECT_EQ(error(R"("image": "", )" + kTurns),
            "a.json:1:2: record 0: image: the path is empty; leave the key out for a text-only "
            "record");
  EXPECT_EQ(error(R"("image": "a\u0000b", )" + kTurns),
            "a.json:1:2: record 0: image: the path holds a NUL character");
  EXPECT_EQ(error(R"("conversations": "hello")"),
            "a.json:1:2: record 0: conversations: expected a list of turns, got a text");
  EXPECT_EQ(error(R"("conversations": [])"),
            "a.json:1:2: record 0: conversations: the list is empty");
  EXPECT_EQ(error(R"("conversations": [3])"),
            "a.json:1:2: record 0: conversations[0]: expected an object, got a number");
  EXPECT_EQ(error(R"("conversations": [{"from": "human"}])"),
            "a.json:1:2: record 0: conversations[0]: has no 'value'");
  EXPECT_EQ(error(R"("conversations": [{"value": "human"}])"),
            "a.json:1:2: record 0: conversations[0]: has no 'from'");
  EXPECT_EQ(error(R"("conversations": [{"from": "human", "value": null}])"),
            "a.json:1:2: record 0: conversations[0].value: expected a text, got null");
  EXPECT_EQ(error(R"("conversations": [{"from": "system", "value": "x"}])"),
            "a.json:1:2: record 0: conversations[0].from: unknown speaker 'system'; known: human, "
            "gpt");
  EXPECT_EQ(error(kTurns + ", " + kTurns),
            "a.json:1:2: record 0: the key 'conversations' appears twice");
  // What is ignored may repeat.
  EXPECT_EQ(index(R"([{"x": 1, "x": {"a": 1, "a": 2}, )" + kTurns + "}]").malformed(), 0);
}

TEST_F(Annotations, BadBytes) {
  const auto with = [&](std::string value) {
    return record_error("[{\"conversations\": [{\"from\": \"human\", \"value\": \"" + value +
                        "\"}]}]");
  };
  for (const std::string& value :
       {std::string("\0", 1), std::string("a\xFFz"), std::string("\xC3"), std::string("\n"),
        std::string("\xED\xA0\x80"), std::string(R"(\ud800)"), std::string(R"(\q)")}) {
    EXPECT_EQ(with(value).substr(0, 9), "a.json:1:") << with(value);
    EXPECT_NE(with(value).find("record 0: not valid JSON"), std::string::npos) << with(value);
  }
  EXPECT_NE(record_error("[{\"a\": " + std::string(3000, '[') + std::string(3000, ']') + "}]")
                .find("not valid JSON"),
            std::string::npos);
  EXPECT_EQ(
      record_error("[{\"a\": \"1e999\", \"b\": 1e999}]"),
      "a.json:1:22: record 0: the number 1e999 is beyond what a 64-bit float holds (1.8e308)");
  EXPECT_EQ(
      record_error("[{\"id\":\n 18446744073709551616}]"),
      "a.json:2:2: record 0: the whole number 18446744073709551616 does not fit into 64 bits; "
      "write it as a text");
}

TEST(Words, AsPython) {
  EXPECT_EQ(count_words(""), 0);
  EXPECT_EQ(count_words("   "), 0);
  EXPECT_EQ(count_words("a"), 1);
  EXPECT_EQ(count_words(" a  b\tc\nd "), 4);
  EXPECT_EQ(count_words("a\x1c"
                        "b\x1f"
                        "c\x0b"
                        "d"),
            4);
  // U+00A0, U+3000, U+2009, U+2028, U+0085 separate; U+200B, U+FEFF and letters do not.
  EXPECT_EQ(count_words("a\u00a0b\u3000c\u2009d\u2028e\u0085f\u1680g\u205fh"), 8);
  EXPECT_EQ(count_words("a\u200bb\ufeffc é 猫犬"), 3);
}

}  // namespace
}  // namespace mgm
