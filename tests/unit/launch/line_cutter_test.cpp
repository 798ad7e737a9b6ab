// Lines out of pieces, and progress lines that rewrite themselves.
#include "launch/line_cutter.h"

#include <gtest/gtest.h>

#include <vector>

namespace mgm {
namespace {

struct Cut {
  std::vector<std::string> lines;
  LineCutter cutter{[this](std::string_view line) { lines.emplace_back(line); }};
};
using Lines = std::vector<std::string>;

TEST(LineCutter, PiecesBecomeLines) {
  Cut cut;
  for (const char* piece : {"on", "e\ntwo\n", "\n", "three", " and a half"}) {
    cut.cutter.feed(piece, 0);
  }
  EXPECT_EQ(cut.lines, Lines({"one", "two", ""}));
  cut.cutter.finish();
  EXPECT_EQ(cut.lines, Lines({"one", "two", "", "three and a half"}));
  cut.cutter.finish();
  EXPECT_EQ(cut.lines.size(), 4);
}

TEST(LineCutter, AnyCutGivesTheSameLines) {
  const std::string text = "first\nsecond line\n\nfourth\r\nfifth\n\xff\xfe binary\nlast";
  const Lines expected = {"first", "second line", "", "fourth", "fifth", "\xff\xfe binary", "last"};
  for (size_t a = 0; a <= text.size(); ++a) {
    Cut cut;
    cut.cutter.feed(text.substr(0, a), 0);
    cut.cutter.feed(text.substr(a), 0);
    cut.cutter.finish();
    EXPECT_EQ(cut.lines, expected) << "cut at " << a;
  }
}

TEST(LineCutter, RewrittenTextIsShownOnceASecond) {
  Cut cut;
  cut.cutter.feed("\r1 %\r2 %", 10.0);
  EXPECT_EQ(cut.lines, Lines({"1 %"}));  // the first at once
  cut.cutter.feed("\r3 %\r", 10.5);
  cut.cutter.tick(10.9);
  EXPECT_EQ(cut.lines, Lines({"1 %"}));
  cut.cutter.tick(11.1);
  EXPECT_EQ(cut.lines, Lines({"1 %", "3 %"}));
  cut.cutter.tick(13);  // nothing new
  cut.cutter.feed("4 %\r5 %\r", 13.0);
  EXPECT_EQ(cut.lines, Lines({"1 %", "3 %", "4 %"}));
  cut.cutter.feed("done\nnext\n", 13.1);  // what it rewrote is gone, as on a terminal
  EXPECT_EQ(cut.lines, Lines({"1 %", "3 %", "4 %", "done", "next"}));
}

TEST(LineCutter, LastRewrittenTextIsNeverLost) {
  Cut cut;
  cut.cutter.feed("1\r2\r3\r", 0);
  cut.cutter.finish();
  EXPECT_EQ(cut.lines, Lines({"1", "3"}));
  Cut with_end;
  with_end.cutter.feed("1\r2\r3\r", 0);
  with_end.cutter.feed("\nafter\n", 0.1);
  EXPECT_EQ(with_end.lines, Lines({"1", "3", "after"}));
}

TEST(LineCutter, EndlessLineComesInPieces) {
  Cut cut;
  for (int i = 0; i < 40; ++i) cut.cutter.feed(std::string(100000, 'x'), 0);
  cut.cutter.finish();
  size_t total = 0;
  for (const std::string& line : cut.lines) total += line.size();
  EXPECT_EQ(total, 4000000);
  EXPECT_GE(cut.lines.size(), 3);
}

}  // namespace
}  // namespace mgm
