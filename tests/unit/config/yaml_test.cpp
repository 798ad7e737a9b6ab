// The strict YAML loader: what it takes, what it refuses, and that its limits hold. And `--set` on
// the tree it makes.
#include <gtest/gtest.h>

#include <random>

#include "base/strings.h"
#include "base/timer.h"
#include "config/override.h"
#include "config/yaml_load.h"

namespace mgm {
namespace {

struct Parsed {
  std::optional<ConfigNode> root;
  std::vector<ConfigIssue> issues;
  bool clean() const { return root && issues.empty(); }
  std::string text() const {
    std::vector<std::string> lines;
    for (const ConfigIssue& issue : issues) {
      lines.push_back(cat(issue.where.text(), ": ", issue.key, ": ", issue.message));
    }
    return join(lines, "\n");
  }
};

Parsed parse(std::string_view text) {
  Parsed out;
  out.root = parse_yaml(text, "f", out.issues);
  return out;
}

TEST(Yaml, EveryNodeKnowsItsPlace) {
  const Parsed p = parse("a:\n  b: [1, \"2\"]\n  c:\n    - {d: x}\n    - ~\n");
  ASSERT_TRUE(p.clean()) << p.text();
  const ConfigNode* a = p.root->find("a");
  ASSERT_TRUE(a && a->find("b") && a->find("c"));
  const ConfigNode &b = *a->find("b"), &c = *a->find("c");
  EXPECT_EQ(b.where.text(), "f:2:6");
  EXPECT_EQ(b.sequence.at(0).where.text(), "f:2:7");
  EXPECT_FALSE(b.sequence.at(0).quoted);
  EXPECT_TRUE(b.sequence.at(1).quoted);
  EXPECT_EQ(c.sequence.at(0).find("d")->where.text(), "f:4:11");
  EXPECT_EQ(c.sequence.at(1).kind, ConfigNode::Kind::kNull);
  EXPECT_FALSE(p.root->find("d"));
}

constexpr const char* kByteOrderMark = "\xef\xbb\xbf";

TEST(Yaml, WindowsLinesAndAByteOrderMark) {
  const Parsed p = parse(cat(kByteOrderMark, "a: 1\r\nb:\r\n  c: 'x'\r\n"));
  ASSERT_TRUE(p.clean()) << p.text();
  EXPECT_EQ(p.root->find("a")->where.text(), "f:1:4");
  EXPECT_EQ(p.root->find("b")->find("c")->scalar, "x");
  EXPECT_EQ(p.root->find("b")->find("c")->where.text(), "f:3:6");
}

// yaml-cpp takes the end of the file for the closing quote.
TEST(Yaml, AnUnclosedQuoteIsRefusedWhateverStandsAround) {
  for (const std::string before :
       {"", kByteOrderMark, "# caf\xc3\xa9\r\n", "b: \"\xf0\x9f\x98\x80\"\n"}) {
    for (const char* text : {"a: \"x", "a: 'x", "a: \"x\\\"", "a: 'it''s", "a: 'x''",
                             "a: [\"x\", 'y]", "a: \"", "a: '"}) {
      EXPECT_FALSE(parse(before + text).root) << before << text;
      EXPECT_FALSE(parse(cat(before, text, "\n")).root) << before << text;
    }
    for (const char* text : {"a: \"x\"", "a: 'it''s'", "a: \"\\\"\"", "a: \"\\\\\"", "a: ''",
                             "a: \"\"", "a: it's", "a: |\n  \"x", "a: ['x', \"y'\"]"}) {
      const Parsed p = parse(before + text);
      EXPECT_TRUE(p.clean()) << before << text << ": " << p.text();
    }
  }
}

TEST(Yaml, NothingIsAnEmptyMapping) {
  for (const char* text : {"", "\n", "# x\n", "---\n...\n", kByteOrderMark}) {
    const Parsed p = parse(text);
    ASSERT_TRUE(p.clean()) << text << p.text();
    EXPECT_EQ(p.root->kind, ConfigNode::Kind::kMap);
    EXPECT_TRUE(p.root->map.empty());
  }
}

TEST(Yaml, Utf8IsTakenAndAnythingElseRefused) {
  for (const char* text : {"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf",
                           "\xee\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(parse(cat("a: \"", text, "\"\n")).clean()) << text;
  }
  // Overlong forms, surrogates, beyond U+10FFFF, cut and stray bytes (RFC 3629).
  for (const char* text :
       {"\xc0\xaf", "\xc1\x81", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "\x80", "\xff"}) {
    const Parsed p = parse(cat("a: \"", text, "\"\n"));
    EXPECT_FALSE(p.root);
    EXPECT_EQ(p.text(), "f:1:5: : this byte is not UTF-8");
  }
  EXPECT_FALSE(parse("a: \xc3").root);  // cut at the end of the file
}

TEST(Yaml, SizeIsLimited) {
  constexpr size_t kMiB = size_t{1} << 20;
  EXPECT_TRUE(parse("#" + std::string(kMiB - 1, 'x')).clean());
  const Parsed p = parse("#" + std::string(kMiB, 'x'));
  EXPECT_FALSE(p.root);
  EXPECT_EQ(p.text(), "f: : 1048577 bytes are no config (limit 1048576)");
}

TEST(Yaml, TheNumberOfValuesAndTheDepthAreLimited) {
  std::string list = "a: [";
  for (int i = 0; i < 20001; ++i) list += "1,";
  const Parsed p = parse(list + "]\n");
  EXPECT_FALSE(p.root);
  EXPECT_NE(p.text().find("more than 20000 values are no config"), std::string::npos);
  const auto nested = [](size_t levels) {  // the mapping is the first level
    return "a: " + std::string(levels - 1, '[') + std::string(levels - 1, ']') + "\n";
  };
  EXPECT_TRUE(parse(nested(kMaxConfigDepth)).clean());
  EXPECT_FALSE(parse(nested(kMaxConfigDepth + 1)).root);
}

// Each of these makes a naive reader run out of stack, memory or patience.
TEST(Yaml, BombsEndQuickly) {
  std::string laughs = "a: &a [x]\n";
  for (char c = 'b'; c <= 'z'; ++c) {
    const auto before = static_cast<char>(c - 1);
    laughs += cat(c, ": &", c, " [*", before, ", *", before, ", *", before, "]\n");
  }
  std::string block, keys;
  for (size_t i = 0; i < 1000; ++i) block += std::string(i, ' ') + "k:\n";
  for (int i = 0; i < 30000; ++i) keys += cat("k", i, ": 1\n");
  const std::string many(200000, '[');
  for (const std::string& text :
       {laughs, block, keys, many, "a: " + std::string(200000, '{'), replace_all(many, "[", "- "),
        replace_all(many, "[", "? "), replace_all(many, "[", "[]"), replace_all(many, "[", "a: "),
        replace_all(many, "[", "!x "), "a: \"" + many + many,
        "a: [" + replace_all(many, "[", "'x',")}) {
    const Timer timer;
    const Parsed p = parse(text);
    EXPECT_FALSE(p.issues.empty()) << text.substr(0, 40);
    EXPECT_LT(timer.seconds(), 20) << text.substr(0, 40);
  }
}

// Text near a config, damaged at random: a tree or issues, never neither.
TEST(Yaml, DamagedTextGivesATreeOrIssues) {
  const std::string seed =
      "extends: [base/hd, x]\ntrain:\n  rules:\n    - match: \"a*\"\n      lr_scale: 2\n"
      "optimizer: {betas: [0.9, 0.999], lr: 1e-3}  # comment\nrun:\n  dir: 'x'\n";
  constexpr std::string_view kSigns = "[]{}:-?&*!|>'\"#%@,\n\t x\xc3";
  std::mt19937 random(11);
  int trees = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = seed;
    for (unsigned n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = kSigns[random() % kSigns.size()];
          break;
        case 1:
          text.erase(at, 1 + random() % 5);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), 7));
      }
    }
    const Parsed p = parse(text);
    EXPECT_TRUE(p.root || !p.issues.empty()) << text;
    ++(p.clean() ? trees : refused);
  }
  EXPECT_GT(trees, 100);
  EXPECT_GT(refused, 100);
}

// ---- one value ----------------------------------------------------------------------------------

std::optional<ConfigNode> value(std::string_view text, std::vector<ConfigIssue>& issues) {
  return parse_yaml_value(text, {"--set x", 0, 0}, issues);
}

TEST(YamlValue, ScalarsListsAndMappings) {
  std::vector<ConfigIssue> issues;
  EXPECT_EQ(value("1e-3", issues)->scalar, "1e-3");
  EXPECT_EQ(value("[1, 2]", issues)->sequence.size(), 2u);
  EXPECT_EQ(value("[1, 2]", issues)->sequence[1].where.text(), "--set x");
  EXPECT_EQ(value("{a: 1}", issues)->find("a")->scalar, "1");
  EXPECT_TRUE(value("'1'", issues)->quoted);
  EXPECT_EQ(value("", issues)->kind, ConfigNode::Kind::kNull);
  EXPECT_TRUE(issues.empty());
}

TEST(YamlValue, NothingTypedIsLost) {
  for (const char* text :
       {"a # b", "a\nb", "[1", "'a", "*a", "&a 1", "!x 1", "a: b: c", "- 1\n2"}) {
    std::vector<ConfigIssue> issues;
    EXPECT_FALSE(value(text, issues)) << text;
    EXPECT_FALSE(issues.empty()) << text;
  }
}

// ---- overrides on a tree ------------------------------------------------------------------------

TEST(Override, AFailedOneLeavesTheTreeAlone) {
  Parsed p = parse("a: {b: 1, c: [1, {d: 2}]}\n");
  ASSERT_TRUE(p.clean());
  std::vector<ConfigIssue> issues;
  for (const char* argument :
       {"a.b.c=1", "a.c[2]=1", "a.c.d=1", "a.c[0].d=1", "a=", "a.x.y=[1", "a.c[1]d=1", "a.c[-1]=1",
        "a.c[]=1", "a.c[1=1", ".a=1", "a.=1", "=1", "a", ""}) {
    issues.clear();
    EXPECT_FALSE(apply_set(*p.root, argument, issues)) << argument;
    EXPECT_FALSE(issues.empty()) << argument;
    EXPECT_EQ(p.root->map.size(), 1u) << argument;
    EXPECT_EQ(p.root->find("a")->map.size(), 2u) << argument;
    EXPECT_EQ(p.root->find("a")->find("b")->scalar, "1") << argument;
  }
  issues.clear();
  EXPECT_TRUE(apply_set(*p.root, "a.c[1].d=7", issues));
  EXPECT_TRUE(apply_set(*p.root, "x.y.z=8", issues));
  EXPECT_EQ(p.root->find("a")->find("c")->sequence[1].find("d")->scalar, "7");
  EXPECT_EQ(p.root->find("x")->find("y")->find("z")->scalar, "8");
  EXPECT_TRUE(issues.empty());
}

}  // namespace
}  // namespace mgm
