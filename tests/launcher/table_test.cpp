#include "fusedbun/launcher/cli/table.h"

#include <gtest/gtest.h>

namespace fusedbun::launcher {
namespace {

TEST(Table, CountsCharactersNotBytes) {
  EXPECT_EQ(width_of("▁▂▃"), 3U);
  EXPECT_EQ(cut("▁▂▃x", 2), "▁▂");
  EXPECT_EQ(cut("ab", 5), "ab");
  EXPECT_EQ(padded("▁", 3), "▁  ");
  EXPECT_EQ(padded("long", 2), "long");
}

TEST(Table, AlignsColumnsAndLeavesNoBlanksAtTheEnd) {
  const std::vector<std::string> lines = aligned({{"A", "LONG", "C"}, {"xyz", "▁"}, {"", "", "c"}});
  EXPECT_EQ(lines, (std::vector<std::string>{"A    LONG  C", "xyz  ▁", "           c"}));
  EXPECT_TRUE(aligned({}).empty());
}

TEST(Table, TextOfOthersCannotSteerTheTerminal) {
  EXPECT_EQ(shown("\x1b]0;owned\x07\nroot"), "\\x1b]0;owned\\x07\\nroot");
  EXPECT_EQ(shown("\xc2\x9b"
                  "31m"),
            "\\x9b31m")
      << "C1, as UTF-8 spells it";
  EXPECT_EQ(shown("\x9b"
                  "31m\xff"),
            "\\x9b31m\\xff")
      << "no UTF-8";
  EXPECT_EQ(shown("a\xe2\x80\xae"
                  "b"),
            "a\\u202eb")
      << "right to left";
  EXPECT_EQ(shown("gr\xc3\xbcn \xe2\x96\x81 \xf0\x9f\x98\x80"),
            "gr\xc3\xbcn \xe2\x96\x81 \xf0\x9f\x98\x80");
  EXPECT_EQ(shown("cut \xe2\x96"), "cut \\xe2\\x96");
  EXPECT_EQ(shown(shown("\x1b")), shown("\x1b"));
  EXPECT_EQ(aligned({{"why\n", "x"}}), (std::vector<std::string>{"why\\n  x"}));
}

}  // namespace
}  // namespace fusedbun::launcher
