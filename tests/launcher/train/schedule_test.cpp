#include "fusedbun/launcher/train/schedule.h"

#include <gtest/gtest.h>

namespace fusedbun::train {
namespace {

constexpr Schedule kSchedule{
    .peak = 2.0, .warmup_steps = 4, .total_steps = 104, .floor_fraction = 0.1};

TEST(LearningRate, WarmsUpInEqualParts) {
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 0), 0.4);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 1), 0.8);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 3), 1.6);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 4), 2.0);
}

TEST(LearningRate, FollowsACosineToItsFloor) {
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 54), (2.0 + 0.2) / 2)
      << "half way, half between peak and floor";
  EXPECT_NEAR(learning_rate(kSchedule, 29), 0.2 + 1.8 * (1 + 0.70710678118654752) / 2, 1e-12);
  for (int64_t step = 5; step < 104; ++step) {
    EXPECT_LT(learning_rate(kSchedule, step), learning_rate(kSchedule, step - 1))
        << "step " << step;
  }
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 104), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(kSchedule, 1000), 0.2);
}

TEST(LearningRate, WarmupMayBeEverythingOrNothing) {
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 0, .total_steps = 10}, 0), 1);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 10, .total_steps = 10}, 9), 10.0 / 11);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 10, .total_steps = 10}, 10), 1);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 1, .warmup_steps = 0, .total_steps = 1}, 0), 1);
}

}  // namespace
}  // namespace fusedbun::train
