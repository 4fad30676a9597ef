#include "fusedbun/dist/control/step_clock.h"

#include <gtest/gtest.h>

namespace fusedbun::control {
namespace {

using std::chrono::milliseconds;

StepClock::Time at(int64_t ms) {
  return StepClock::Time(milliseconds(ms));
}

TEST(StepClock, NothingProgressesBeforeTheFirstStepHasEnded) {
  StepClock clock(milliseconds(100));
  EXPECT_FALSE(clock.is_progressing(at(0)));
  clock.step_ended(at(50));
  EXPECT_TRUE(clock.is_progressing(at(150)));
  EXPECT_FALSE(clock.is_progressing(at(151)));
}

TEST(StepClock, SlowStepsGetTenMedians) {
  StepClock clock(milliseconds(100));
  for (int64_t step = 0; step < 10; ++step) clock.step_ended(at(step * 50));
  EXPECT_EQ(clock.limit(), milliseconds(500));
  EXPECT_TRUE(clock.is_progressing(at(450 + 500)));
  EXPECT_FALSE(clock.is_progressing(at(450 + 501)));
}

TEST(StepClock, OneLongStepDoesNotMoveTheMedian) {
  StepClock clock(milliseconds(100));
  for (int64_t step = 0; step < 9; ++step) clock.step_ended(at(step));
  clock.step_ended(at(10'000));
  EXPECT_EQ(clock.limit(), milliseconds(100));
}

TEST(StepClock, OldStepsAreForgotten) {
  StepClock clock(milliseconds(100));
  int64_t now = 0;
  for (int step = 0; step < 40; ++step) clock.step_ended(at(now += 1000));
  for (int step = 0; step < 40; ++step) clock.step_ended(at(now += 20));
  EXPECT_EQ(clock.limit(), milliseconds(200));
}

}  // namespace
}  // namespace fusedbun::control
