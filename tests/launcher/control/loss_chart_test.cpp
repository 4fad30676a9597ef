#include "fusedbun/launcher/control/loss_chart.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fusedbun/launcher/cli/table.h"

namespace fusedbun::launcher {
namespace {

/// value = 10 - step / 10 over steps 0 to 90.
std::vector<ChartPoint> falling() {
  std::vector<ChartPoint> points;
  for (int64_t step = 0; step <= 90; ++step)
    points.push_back({step, 10 - static_cast<double>(step) / 10});
  return points;
}

TEST(LossChart, ALineOfLevels) {
  EXPECT_EQ(draw_levels(std::vector<double>{0, 1, 2, 3, 4, 5, 6, 7}), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(draw_levels(std::vector<double>{5, 5, 5}), "▁▁▁");
  EXPECT_EQ(draw_levels({}), "");
}

TEST(LossChart, BinsAreMeansAndGapsAreBridged) {
  const std::vector<ChartPoint> points = {{0, 1}, {1, 3}, {9, 10}};
  EXPECT_EQ(binned(points, 2), (std::vector<double>{2, 10}));
  EXPECT_EQ(binned(std::vector<ChartPoint>{{0, 2}, {9, 11}}, 4),
            (std::vector<double>{2, 5, 8, 11}));
  EXPECT_TRUE(binned({}, 4).empty());
  EXPECT_EQ(binned(std::vector<ChartPoint>{{7, 5}}, 3), (std::vector<double>{5, 5, 5}));
}

TEST(LossChart, WhatIsNoNumberIsLeftOut) {
  const double nan = std::nan("");
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(binned(std::vector<ChartPoint>{{0, 1}, {1, nan}, {2, inf}, {3, 2}}, 4),
            (std::vector<double>{1, 1 + 1.0 / 3, 1 + 2.0 / 3, 2}));
  EXPECT_TRUE(binned(std::vector<ChartPoint>{{0, nan}}, 4).empty());
}

TEST(LossChart, ShowsTheCurveItsRangeAndTheMarks) {
  const std::vector<ChartMark> marks = {{30, "1"}, {60, "2"}};
  const std::vector<std::string> lines = draw_chart(falling(), marks, {.width = 19, .height = 6});
  ASSERT_EQ(lines.size(), 6U);
  EXPECT_EQ(lines[3], "        └───▲──▲───");
  EXPECT_EQ(lines[4], "            1  2");
  EXPECT_EQ(lines[5], "         step 0  90");
  EXPECT_EQ(cut(lines[0], 10), "   9.55 ┤█");
  for (size_t line = 0; line + 4 < lines.size(); ++line) {
    EXPECT_LE(width_of(lines[line]), width_of(lines[line + 1])) << "it falls";
  }
}

TEST(LossChart, FitsEverySize) {
  const std::vector<ChartMark> marks = {{10, "1"}, {11, "2"}, {90, "30"}, {500, "31"}};
  for (int width = 1; width < 140; ++width) {
    for (int height = 1; height < 12; ++height) {
      const auto lines = draw_chart(falling(), marks, {width, height});
      EXPECT_EQ(lines.size(), static_cast<size_t>(height));
      for (const std::string& line : lines) {
        EXPECT_LE(width_of(line), static_cast<size_t>(std::max(width, 40)));
      }
    }
  }
}

}  // namespace
}  // namespace fusedbun::launcher
