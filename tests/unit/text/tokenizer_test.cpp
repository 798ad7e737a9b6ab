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
