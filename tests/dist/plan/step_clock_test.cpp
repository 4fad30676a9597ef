#include "fusedbun/dist/plan/step_clock.h"

#include <gtest/gtest.h>

namespace fusedbun::plan {
namespace {

TEST(StepClock, NothingProgressesBeforeTheFirstStepHasEnded) {
  StepClock clock(100);
  EXPECT_FALSE(clock.is_progressing(0));
  EXPECT_FALSE(clock.is_stalled(1'000'000)) << "a long start is no stall";
  clock.step_ended(50);
  EXPECT_TRUE(clock.is_progressing(150));
  EXPECT_FALSE(clock.is_progressing(151));
  EXPECT_TRUE(clock.is_stalled(151));
}

TEST(StepClock, SlowStepsGetTenMedians) {
  StepClock clock(100);
  for (int64_t step = 0; step < 10; ++step) clock.step_ended(step * 50);
  EXPECT_EQ(clock.limit_us(), 500);
  EXPECT_TRUE(clock.is_progressing(450 + 500));
  EXPECT_FALSE(clock.is_progressing(450 + 501));
}

TEST(StepClock, SeveralStepsAtOnceCountWithTheirMean) {
  StepClock clock(10);
  clock.steps_ended(7, 1000);
  EXPECT_EQ(clock.steps_ended(50, 2000), 20);
  EXPECT_EQ(clock.limit_us(), 200);
}

TEST(StepClock, OneLongStepDoesNotMoveTheMedian) {
  StepClock clock(100);
  for (int64_t step = 0; step < 9; ++step) clock.step_ended(step);
  clock.step_ended(10'000);
  EXPECT_EQ(clock.limit_us(), 100);
}

TEST(StepClock, OldStepsAreForgotten) {
  StepClock clock(100);
  int64_t now = 0;
  for (int step = 0; step < 40; ++step) clock.step_ended(now += 1000);
  for (int step = 0; step < 40; ++step) clock.step_ended(now += 20);
  EXPECT_EQ(clock.limit_us(), 200);
}

TEST(StepClock, TimeThatNobodyWatchedDoesNotCount) {
  StepClock clock(100);
  clock.step_ended(0);
  clock.pause(5'000, 5'050);
  EXPECT_TRUE(clock.is_progressing(5'100));
  EXPECT_FALSE(clock.is_progressing(5'101));
}

}  // namespace
}  // namespace fusedbun::plan
