// What parity tests do not reach: broken input, the stream decoder's promise, UTF-8 helpers. Ids
// and decoding are compared with Hugging Face's in tests/parity/test_tokenizer_parity.py.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/utf8.h"

namespace mgm {
namespace {

const Tokenizer& tokenizer() {
  static const auto loaded = load_tokenizer(MGM_SOURCE_DIR "/data/embedded/tokenizer");
  return *loaded;
}

TEST(EmbeddedTokenizer, ItsTokens) {
  EXPECT_EQ(tokenizer().vocab_size(), 1024);
  EXPECT_EQ(tokenizer().bos_id(), tokenizer().token_id("<s>"));
  EXPECT_EQ(tokenizer().eos_id(), tokenizer().token_id("</s>"));
  EXPECT_EQ(tokenizer().token_id("no such piece"), -1);
  EXPECT_TRUE(tokenizer().is_special(tokenizer().eos_id()));
  EXPECT_TRUE(tokenizer().adds_bos());
  EXPECT_EQ(tokenizer().encode(""), std::vector<int32_t>{tokenizer().bos_id()});
  EXPECT_EQ(tokenizer().decode({}, false), "");
  EXPECT_THROW(tokenizer().decode({1024}, false), DataError);
  EXPECT_THROW(tokenizer().decode({-1}, true), DataError);
  EXPECT_EQ(tokenizer().files().front().first, "tokenizer.model");
}

TEST(EmbeddedTokenizer, SpansTileTheText) {
  const std::string text = "<s>A  cat, \xF0\x9F\x90\x88 12</s> x\n";
  int64_t at = 0;
  for (const TokenSpan& token : tokenizer().encode_spans(text)) {
    EXPECT_TRUE(token.begin == at || token.begin == token.end);
    at = std::max(at, token.end);
  }
  EXPECT_EQ(at, static_cast<int64_t>(text.size()));
}

TEST(StreamDecoder, HandsOutWholeCharacters) {
  const std::string text = "A cat \xF0\x9F\x90\x88\xE7\x8C\xAB \xC3\xA9.";
  StreamDecoder stream(tokenizer());
  std::string all;
  for (const int32_t id : tokenizer().encode(text)) {
    const std::string fresh = stream.push(id);
    EXPECT_EQ(valid_utf8(fresh), fresh);
    EXPECT_EQ(fresh.find("\xEF\xBF\xBD"), std::string::npos);
    all += fresh;
    EXPECT_EQ(stream.text(), all);
  }
  EXPECT_EQ(all + stream.finish(), text);

  StreamDecoder cut(tokenizer());  // an answer that ends inside a character
  std::vector<int32_t> ids = tokenizer().encode("a\xF0\x9F\x90\x88");
  ids.pop_back();
  std::string shown;
  for (const int32_t id : ids) shown += cut.push(id);
  EXPECT_EQ(shown, "a");
  EXPECT_EQ(shown + cut.finish(), tokenizer().decode(ids, true));
}

// Tokens that are decoded, over all calls.
class Counting : public Tokenizer {
 public:
  explicit Counting(const Tokenizer& inner) : inner_(inner) {}
  std::string decode(const std::vector<int32_t>& ids, bool skip_special) const override {
    decoded += ids.size();
    return inner_.decode(ids, skip_special);
  }
  std::vector<TokenSpan> encode_spans(std::string_view text) const override {
    return inner_.encode_spans(text);
  }
  int64_t vocab_size() const override { return inner_.vocab_size(); }
  std::string piece(int32_t id) const override { return inner_.piece(id); }
  int32_t token_id(const std::string& piece) const override { return inner_.token_id(piece); }
  bool is_special(int32_t id) const override { return inner_.is_special(id); }
  bool is_tentative(int32_t id) const override { return inner_.is_tentative(id); }
  int32_t bos_id() const override { return inner_.bos_id(); }
  int32_t eos_id() const override { return inner_.eos_id(); }
  int32_t pad_id() const override { return inner_.pad_id(); }
  bool adds_bos() const override { return inner_.adds_bos(); }
  const std::vector<std::pair<std::string, std::string>>& files() const override {
    return inner_.files();
  }
  mutable size_t decoded = 0;

 private:
  const Tokenizer& inner_;
};

TEST(StreamDecoder, AnAnswerTwiceAsLongCostsTwiceAsMuch) {
  std::string text = "  ";  // blanks that begin a text, which are dropped or not, and some amid it
  for (int i = 0; i < 500; ++i)
    text += cat(" the cat", i % 7 == 0 ? "\n\n   " : " ", i, " \xF0\x9F\x90\x88 is.");
  const Counting counting(tokenizer());
  const std::vector<int32_t> ids = counting.encode(text);
  StreamDecoder stream(counting);
  std::string all;
  for (const int32_t id : ids) all += stream.push(id);
  all += stream.finish();
  EXPECT_EQ(all, tokenizer().decode(ids, true));
  EXPECT_EQ(stream.text(), all);
  EXPECT_LT(counting.decoded, 12 * ids.size());
}

TEST(Utf8, Helpers) {
  EXPECT_EQ(valid_utf8("a\xFF\xC0\xAFz"), "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz");
  EXPECT_EQ(valid_utf8("\xF0\x9F\x90"), "\xEF\xBF\xBD");
  EXPECT_EQ(whole_characters("ab\xE7\x8C"), 2u);
  EXPECT_EQ(whole_characters(""), 0u);
  EXPECT_EQ(strip("\xE3\x80\x80 \x1c a b\xC2\xA0\n"), "a b");
  EXPECT_EQ(strip(" \t"), "");
}

}  // namespace
}  // namespace mgm
