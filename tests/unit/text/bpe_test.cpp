// The core of byte-pair encoding, what broken tokenizer files say, and encoding from many threads.
// Equality with other libraries is in tests/parity/test_bpe_parity.py.
#include "text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "base/base64.h"
#include "base/error.h"
#include "base/fs.h"
#include "base/json.h"
#include "text/regex.h"
#include "text/tokenizer.h"

namespace mgm {
namespace {

// A small tokenizer.json in the manner of LLaMA-3's.
Json small_file() {
  return Json::parse(R"({
    "added_tokens": [{"id": 8, "content": "<bos>", "special": true, "normalized": false},
                     {"id": 9, "content": "<eos>", "special": true, "normalized": false}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A"}}],
      "special_tokens": {"<bos>": {"id": "<bos>", "ids": [8], "tokens": ["<bos>"]}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "unk_token": "<bos>",
      "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5, "Ġab": 6, "bc": 7, "<bos>": 8},
      "merges": ["a b", ["ab", "c"], "Ġ ab", "b c"]}
  })");
}

class TokenizerJson : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::path(testing::TempDir()) /
           testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(dir_);
    make_dirs(dir_);
  }
  std::unique_ptr<Tokenizer> load(const std::string& text) {
    write_file_atomic(dir_ / "tokenizer.json", text);
    return load_tokenizer(dir_.string());
  }
  // What a changed file is refused with.
  std::string refusal(const std::function<void(Json&)>& change) {
    Json file = small_file();
    change(file);
    return refusal_of(file.dump());
  }
  std::string refusal_of(const std::string& text) {
    try {
      load(text);
    } catch (const DataError& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.rfind((dir_ / "tokenizer.json").string(), 0), 0u) << message;
      return message;
    }
    return "accepted";
  }
  void expect_refusal(const std::function<void(Json&)>& change, const std::string& part) {
    const std::string message = refusal(change);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }

  fs::path dir_;
};

TEST_F(TokenizerJson, SmallFile) {
  const auto tokenizer = load(small_file().dump());
  EXPECT_EQ(tokenizer->vocab_size(), 10);
  EXPECT_TRUE(tokenizer->adds_bos());
  EXPECT_EQ(tokenizer->bos_id(), 8);
  EXPECT_EQ(tokenizer->encode("abc ab<eos>"), (std::vector<int32_t>{8, 4, 6, 9}));
  EXPECT_EQ(tokenizer->decode({8, 4, 6, 9}, true), "abc ab");
  EXPECT_EQ(tokenizer->decode({8, 4, 6, 9}, false), "<bos>abc ab<eos>");
  EXPECT_THROW(tokenizer->decode({10}, false), DataError);
  EXPECT_EQ(tokenizer->files().front().first, "tokenizer.json");
  EXPECT_EQ(tokenizer->replaced_parts(), 0);
  tokenizer->encode(
      "a\xFF"
      "b\xE2\x82");
  EXPECT_EQ(tokenizer->replaced_parts(), 2);
}

TEST_F(TokenizerJson, BrokenFiles) {
  const std::string whole = small_file().dump();
  EXPECT_NE(refusal_of(whole.substr(0, whole.size() / 2)).find("not valid JSON"),
            std::string::npos);
  EXPECT_NE(refusal_of("[1]").find("expected an object"), std::string::npos);
  expect_refusal([](Json& f) { f.erase("model"); }, "no 'model'");
  expect_refusal([](Json& f) { f["model"].erase("merges"); }, "model: 'merges' is missing");
  expect_refusal([](Json& f) { f["model"].erase("vocab"); }, "model: 'vocab' is missing");
  expect_refusal([](Json& f) { f["model"]["merges"].push_back("a x"); },
                 "merge 5 ('a' and 'x'): 'x' is not in the vocabulary");
  expect_refusal([](Json& f) { f["model"]["merges"].push_back("c a"); },
                 "'ca' is not in the vocabulary");
  expect_refusal([](Json& f) { f["model"]["merges"].push_back("abc"); }, "is not two tokens");
  expect_refusal([](Json& f) { f["model"]["merges"].push_back(7); }, "is no pair of tokens");
  expect_refusal([](Json& f) { f["model"]["vocab"]["c"] = 1; }, "have the same id 1");
  expect_refusal([](Json& f) { f["model"]["vocab"]["c"] = -1; }, "has the id -1");
  expect_refusal([](Json& f) { f["model"]["vocab"]["c"] = 2000000000; }, "id 2000000000 in a");
  expect_refusal([](Json& f) { f["model"]["vocab"]["c"] = 20000000000; }, "expected an id");
  expect_refusal([](Json& f) { f["model"]["unk_token"] = "?"; }, "unknown token '?'");
  expect_refusal([](Json& f) { f["added_tokens"][0]["id"] = 5; }, "has the id 8 before");
  expect_refusal([](Json& f) { f["added_tokens"][1]["id"] = 5; }, "takes the id of");
  expect_refusal([](Json& f) { f["added_tokens"][1]["content"] = ""; }, "is empty");
  expect_refusal([](Json& f) { f["post_processor"]["special_tokens"].clear(); }, "is missing");
  expect_refusal([](Json& f) { f["post_processor"]["special_tokens"]["<bos>"]["ids"] = {77}; },
                 "adds id 77, which is no token");
}

TEST_F(TokenizerJson, UnsupportedComponents) {
  expect_refusal([](Json& f) { f["model"]["type"] = "Unigram"; }, "model type 'Unigram'");
  expect_refusal([](Json& f) { f["model"]["dropout"] = 0.1; }, "'dropout' is not supported");
  expect_refusal([](Json& f) { f["normalizer"] = {{"type", "Lowercase"}}; },
                 "normalizer: type 'Lowercase' is not supported");
  expect_refusal(
      [](Json& f) {
        f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Nmt"}}}}};
      },
      "normalizer.normalizers[0]: type 'Nmt' is not supported");
  expect_refusal([](Json& f) { f["pre_tokenizer"] = {{"type", "BertPreTokenizer"}}; },
                 "pre_tokenizer: type 'BertPreTokenizer'");
  expect_refusal([](Json& f) { f["post_processor"] = {{"type", "RobertaProcessing"}}; },
                 "post_processor: type 'RobertaProcessing'");
  expect_refusal([](Json& f) { f["decoder"] = {{"type", "CTC"}}; }, "decoder: type 'CTC'");
  const auto split = [](const char* pattern, const char* behavior) {
    return [=](Json& f) {
      f["pre_tokenizer"] = {
          {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}};
    };
  };
  expect_refusal(split("a", "Sideways"), "behavior 'Sideways'");
  expect_refusal(split("(", "Isolated"), "cannot compile the regular expression '('");
  expect_refusal(split(R"(\p{N}{1,3}+)", "Isolated"), "'}+'");
  expect_refusal(split(R"(\ba)", "Isolated"), R"('\b')");
  expect_refusal(split("[a&&b]", "Isolated"), "'&&' in a class");
}

TEST_F(TokenizerJson, SettingsBesideIt) {
  write_file_atomic(dir_ / "tokenizer_config.json",
                    R"({"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<bos>",
                        "eos_token": {"content": "<eos>"}, "add_bos_token": false,
                        "add_eos_token": true,
                        "added_tokens_decoder": {"10": {"content": "<x>", "special": true}}})");
  const auto tokenizer = load(small_file().dump());
  EXPECT_EQ(tokenizer->encode("ab<x>"), (std::vector<int32_t>{3, 10, 9}));
  EXPECT_EQ(tokenizer->eos_id(), 9);
  EXPECT_FALSE(tokenizer->adds_bos());
  write_file_atomic(dir_ / "tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_EQ(load(small_file().dump())->eos_id(), 10);  // added, as in transformers
  Json gap = small_file();
  gap["added_tokens"][1]["id"] = 2147483647;
  EXPECT_EQ(load(gap.dump())->token_id("<eos>"), 9);  // the next one free, as in tokenizers
}

TEST(Tiktoken, BrokenFiles) {
  const fs::path path = fs::path(testing::TempDir()) / "broken.tiktoken";
  const auto refusal = [&](const std::string& text) -> std::string {
    write_file_atomic(path, text);
    try {
      load_tokenizer(path.string());
    } catch (const DataError& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_NE(refusal("YQ== 0\nYg==\n").find("broken.tiktoken:2: expected base64"),
            std::string::npos);
  EXPECT_NE(refusal("YQ== 0\nYg 1\n").find(":2: expected base64"), std::string::npos);
  EXPECT_NE(refusal("YQ== 0\nYg== 1x\n").find(":2: expected base64"), std::string::npos);
  EXPECT_NE(refusal("YQ== 0\n").find("1 ranks are no known encoding"), std::string::npos);
}

TEST(Base64, ThereAndBack) {
  for (const std::string text : {"", "a", "ab", "abc", "abcd", "\xFF\x00\x10"}) {
    EXPECT_EQ(decode_base64(base64(text)), text);
  }
  for (const char* bad : {"a", "ab=c", "a===", "ab!d", "abc=d"}) {
    EXPECT_EQ(decode_base64(bad), std::nullopt) << bad;
  }
}

Bpe letters() {
  std::vector<std::pair<std::string, int32_t>> tokens = {{"a", 0}, {"b", 1}};
  for (int32_t i = 2; i < 14; ++i) tokens.emplace_back(std::string(size_t{1} << (i - 1), 'a'), i);
  Vocabulary vocabulary(tokens, "test");
  const std::vector<BpeMerge> merges = merges_of_ranks(vocabulary);
  BpeOptions options;
  options.bytes = true;
  return Bpe(std::move(vocabulary), merges, options, "test");
}

TEST(Bpe, ShortAndLongWordsMergeAlike) {
  const Bpe bpe = letters();
  // Words below and above the length where the algorithm changes, cut into the same tokens.
  for (size_t length : {1u, 2u, 3u, 7u, 47u, 48u, 49u, 64u, 65u, 1000u}) {
    std::vector<BpeToken> tokens;
    bpe.encode(std::string(length, 'a'), tokens);
    std::vector<uint32_t> sizes;
    uint32_t at = 0;
    for (const BpeToken& token : tokens) {
      EXPECT_EQ(token.begin, at);
      at = token.end;
      sizes.push_back(token.end - token.begin);
    }
    EXPECT_EQ(at, length);
    EXPECT_TRUE(std::is_sorted(sizes.rbegin(), sizes.rend())) << length;  // 2^k, falling
    EXPECT_EQ(tokens.size(), size_t(__builtin_popcountll(length))) << length;
  }
}

TEST(Bpe, LongWordsAreNotQuadratic) {
  const Bpe bpe = letters();
  const auto seconds = [&](size_t length) {
    std::string word;
    while (word.size() < length) word += "aab";
    std::vector<BpeToken> tokens;
    const auto start = std::chrono::steady_clock::now();
    bpe.encode(word, tokens);
    EXPECT_EQ(tokens.size(), 2 * (word.size() / 3));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  seconds(1000);
  // A tenth of a second where n log n, minutes where n squared.
  EXPECT_LT(seconds(300'000), 30.0);
}

TEST(Bpe, ManyThreadsGetTheSame) {
  const Bpe bpe = letters();
  const auto word = [](int i) { return std::string(size_t(i % 37 + 1), i % 3 ? 'a' : 'b'); };
  std::vector<std::vector<BpeToken>> expected(2000);
  for (int i = 0; i < 2000; ++i) bpe.encode(word(i), expected[size_t(i)]);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20000; ++i) {
        const int which = (i * 7 + t) % 2000;
        std::vector<BpeToken> got;
        bpe.encode(word(which), got);
        const auto& want = expected[size_t(which)];
        const bool same = std::equal(got.begin(), got.end(), want.begin(), want.end(),
                                     [](const BpeToken& a, const BpeToken& b) {
                                       return a.id == b.id && a.begin == b.begin && a.end == b.end;
                                     });
        if (!same) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Regex, LongRunsNeedNoStack) {
  // Back-tracking over every character of the run: more than the just-in-time stack holds.
  const Regex regex(R"((?:a|b)+c|x)", Regex::Dialect::kRust, "test");
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "ab";
  Match match;
  EXPECT_TRUE(regex.search(text + "c", 0, match));
  EXPECT_EQ(match.end, text.size() + 1);
}

}  // namespace
}  // namespace mgm
