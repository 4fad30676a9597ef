#include "fusedbun/launcher/train/checkpoint_schedule.h"

#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

TEST(CheckpointEvery, IsStepsOrTime) {
  EXPECT_EQ(parse_checkpoint_every("500").steps, 500);
  EXPECT_EQ(parse_checkpoint_every("500").seconds, 0);
  EXPECT_EQ(parse_checkpoint_every("90s").seconds, 90);
  EXPECT_EQ(parse_checkpoint_every("10m").seconds, 600);
  EXPECT_EQ(parse_checkpoint_every("10min").seconds, 600);
  EXPECT_EQ(parse_checkpoint_every("1.5h").seconds, 5400);
  EXPECT_EQ(parse_checkpoint_every("0").steps, 0);
  EXPECT_EQ(parse_checkpoint_every("0").seconds, 0);
  for (const char* wrong : {"", "ten", "-5", "1.5", "10x", "0m", "inf", "nan", "10 m", "1e99"}) {
    EXPECT_THROW(parse_checkpoint_every(wrong), ConfigError) << wrong;
  }
}

TEST(CheckpointSchedule, AfterEverySoManySteps) {
  CheckpointSchedule schedule({.steps = 10}, 0);
  EXPECT_FALSE(schedule.is_due(9, false));
  EXPECT_TRUE(schedule.is_due(10, false));
  // Another save is under way: it stays due until it is saved.
  EXPECT_TRUE(schedule.is_due(13, false));
  schedule.saved(13, 1);
  EXPECT_FALSE(schedule.is_due(19, false));
  EXPECT_TRUE(schedule.is_due(20, false));
}

TEST(CheckpointSchedule, GoesOnFromWhereTheRunWasResumed) {
  const CheckpointSchedule schedule({.steps = 10}, 20);
  EXPECT_FALSE(schedule.is_due(20, false));
  EXPECT_FALSE(schedule.is_due(29, false));
  EXPECT_TRUE(schedule.is_due(30, false));
}

TEST(CheckpointSchedule, AfterSoMuchTime) {
  CheckpointSchedule schedule({.seconds = 60}, 0);
  EXPECT_FALSE(schedule.is_time(59));
  EXPECT_TRUE(schedule.is_time(60));
  EXPECT_TRUE(schedule.is_due(3, true));
  EXPECT_FALSE(schedule.is_due(3, false));
  schedule.saved(3, 60);
  EXPECT_FALSE(schedule.is_time(100));
  EXPECT_TRUE(schedule.is_time(120));
  EXPECT_FALSE(schedule.is_due(3, true));  // that step is saved
}

TEST(CheckpointSchedule, NeverByItself) {
  const CheckpointSchedule schedule({}, 0);
  EXPECT_FALSE(schedule.is_time(1e9));
  EXPECT_FALSE(schedule.is_due(1'000'000, false));
}

}  // namespace
}  // namespace fusedbun::train
