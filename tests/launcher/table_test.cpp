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

}  // namespace
}  // namespace fusedbun::launcher
