#include "base/strings.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

namespace mgm {
namespace {

using Parts = std::vector<std::string>;

TEST(Strings, CatAndStrf) {
  EXPECT_EQ(cat("a", 1, 'b', 2.5, std::string("c")), "a1b2.5c");
  EXPECT_EQ(strf("%d-%s", 7, "x"), "7-x");
  EXPECT_EQ(strf("%s", ""), "");
  EXPECT_EQ(strf("%s", std::string(5000, 'x').c_str()).size(), 5000u);
}

TEST(Strings, SplitAndJoinUndoEachOther) {
  EXPECT_EQ(split("", ','), Parts{""});
  EXPECT_EQ(split(",", ','), (Parts{"", ""}));
  EXPECT_EQ(split("a,,b", ','), (Parts{"a", "", "b"}));
  EXPECT_EQ(join({}, ","), "");
  EXPECT_EQ(join({"a"}, ","), "a");
  for (const char* text : {"", ",", "a", "a,b", ",a,,b,"})
    EXPECT_EQ(join(split(text, ','), ","), text);
}

TEST(Strings, Trim) {
  EXPECT_EQ(trim(" \t\r\n a b \f\v"), "a b");
  EXPECT_EQ(trim(" \n "), "");
  EXPECT_EQ(trim(""), "");
  EXPECT_EQ(trim("\xc2\xa0x"), "\xc2\xa0x");  // a no-break space is no ASCII space
}

TEST(Strings, ReplaceAll) {
  EXPECT_EQ(replace_all("aaa", "a", "aa"), "aaaaaa");  // what was put in is not looked at again
  EXPECT_EQ(replace_all("aaa", "aa", "b"), "ba");
  EXPECT_EQ(replace_all("abc", "", "x"), "abc");
  EXPECT_EQ(replace_all("abc", "b", ""), "ac");
}

TEST(Strings, ToLowerIsAscii) { EXPECT_EQ(to_lower("AbZ[\xc3\x84"), "abz[\xc3\x84"); }

TEST(Strings, Closest) {
  const Parts keys = {"weight_decay", "lr", "betas", "eps", "clip_norm"};
  EXPECT_EQ(closest("weigth_decay", keys), "weight_decay");
  EXPECT_EQ(closest("beta", keys), "betas");
  EXPECT_EQ(closest("lr", keys), "lr");
  EXPECT_EQ(closest("gradient_accumulation", keys), "");
  EXPECT_EQ(closest("x", {}), "");
  // Two neighbours swapped are one slip: nearer than a word two letters away.
  EXPECT_EQ(closest("sede", {"side_", "seed"}), "seed");
}

// Against the definition, on every pattern and text of up to 4 and 5 letters of a small alphabet.
TEST(Strings, GlobMatchIsTheDefinition) {
  const std::function<bool(std::string_view, std::string_view)> matches =
      [&](std::string_view pattern, std::string_view text) -> bool {
    if (pattern.empty()) return text.empty();
    if (pattern[0] == '*') {
      return matches(pattern.substr(1), text) ||
             (!text.empty() && matches(pattern, text.substr(1)));
    }
    return !text.empty() && (pattern[0] == '?' || pattern[0] == text[0]) &&
           matches(pattern.substr(1), text.substr(1));
  };
  const auto words = [](const std::string& letters, size_t longest) {
    Parts out = {""};
    for (size_t begin = 0, length = 0; length < longest; ++length) {
      const size_t end = out.size();
      for (; begin < end; ++begin) {
        for (const char c : letters) out.push_back(out[begin] + c);
      }
    }
    return out;
  };
  int hits = 0;
  for (const std::string& pattern : words("ab*?", 4)) {
    for (const std::string& text : words("ab", 5)) {
      const bool expected = matches(pattern, text);
      hits += expected ? 1 : 0;
      ASSERT_EQ(glob_match(pattern, text), expected) << pattern << " / " << text;
    }
  }
  EXPECT_GT(hits, 1000);
  EXPECT_TRUE(glob_match("model.layers.*.weight", "model.layers.0.mlp.weight"));
  EXPECT_FALSE(glob_match("model.layers.?", "model.layers.10"));
  EXPECT_TRUE(glob_match("a*b", "a*b"));  // a star in the text is a letter like any other
  EXPECT_FALSE(
      glob_match("*" + std::string(40, 'a') + "b", std::string(20000, 'a')));  // no blow-up
}

TEST(Strings, HumanUnits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.00 KiB");
  EXPECT_EQ(human_bytes(1.5 * 1024 * 1024 * 1024), "1.50 GiB");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(7266093504.0), "7.27 B");
  EXPECT_EQ(human_count(1200000), "1.20 M");
  EXPECT_EQ(human_seconds(2.44), "2.4s");
  EXPECT_EQ(human_seconds(185), "3m05s");
  EXPECT_EQ(human_seconds(3720), "1h02m");
  EXPECT_EQ(human_seconds(86400 * 3 + 3600), "3d01h");
}

TEST(Strings, PrintableHasNoControlCharacters) {
  EXPECT_EQ(printable("a\tb\nc \xc3\xa9"), "a\tb\nc \xc3\xa9");
  EXPECT_EQ(printable("a\x1b[2J\r\x7f"), "a\\x1b[2J\\x0d\\x7f");
  EXPECT_EQ(printable(std::string_view("\0", 1)), "\\x00");
}

TEST(Strings, WithCommas) {
  EXPECT_EQ(with_commas(0), "0");
  EXPECT_EQ(with_commas(999), "999");
  EXPECT_EQ(with_commas(1000), "1,000");
  EXPECT_EQ(with_commas(7266093504), "7,266,093,504");
  EXPECT_EQ(with_commas(-100), "-100");
  EXPECT_EQ(with_commas(-1000), "-1,000");
  EXPECT_EQ(with_commas(std::numeric_limits<int64_t>::min()), "-9,223,372,036,854,775,808");
}

}  // namespace
}  // namespace mgm
