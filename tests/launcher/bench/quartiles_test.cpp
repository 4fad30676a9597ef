#include "fusedbun/launcher/bench/quartiles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fusedbun::bench {
namespace {

TEST(Spread, IsMedianAndQuartiles) {
  const Spread odd = spread_of({5, 1, 4, 2, 3});
  EXPECT_EQ(odd.median, 3);
  EXPECT_EQ(odd.low, 2);
  EXPECT_EQ(odd.high, 4);
  EXPECT_EQ(spread_of({1, 2}).median, 1.5);
  EXPECT_EQ(spread_of({7}).high, 7);
  EXPECT_EQ(spread_of({}).median, 0);
}

TEST(Spread, RatiosAreOfNeighbours) {
  EXPECT_THAT(paired_ratios({2, 9}, {4, 3}), testing::ElementsAre(0.5, 3));
}

}  // namespace
}  // namespace fusedbun::bench
