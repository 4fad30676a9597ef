#include "fusedbun/launcher/train/loss_scale.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

namespace fusedbun::train {
namespace {

/// torch.amp.GradScaler in four lines: scale and growth tracker after a step.
struct GradScaler {
  double scale = 65536;
  int64_t tracker = 0;
  void update(bool found_inf, int64_t growth_interval) {
    tracker = found_inf ? 0 : tracker + 1;
    if (found_inf) scale *= 0.5;
    if (tracker == growth_interval) scale *= 2, tracker = 0;
  }
};

LossScaleRules rules(int64_t growth_interval, int delay = 0) {
  return {.growth_interval = growth_interval, .delay = delay};
}

/// Begins the steps of `skipped` one after the other; what became of step s is told `late` steps after s. Returns the scale of each.
std::vector<double> scales(LossScale scale, const std::vector<bool>& skipped, size_t late) {
  std::vector<double> used;
  for (size_t step = 0; step < skipped.size(); ++step) {
    used.push_back(scale.begin_step());
    if (step >= late) scale.tell(skipped[step - late]);
  }
  return used;
}

TEST(LossScaleTest, ToldAtOnceItIsGradScaler) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    const int64_t interval = 1 + random() % 6;
    GradScaler expected;
    LossScale scale(rules(interval));
    for (int step = 0; step < 200; ++step) {
      ASSERT_EQ(scale.begin_step(), expected.scale) << "step " << step;
      ASSERT_EQ(scale.good_steps(), expected.tracker);
      const bool skipped = expected.scale > 2 && random() % 4 == 0;
      scale.tell(skipped);
      expected.update(skipped, interval);
      if (expected.scale > 1e30) break;
    }
  }
}

TEST(LossScaleTest, GrowsAfterTwoThousandGoodSteps) {
  LossScale scale(LossScaleRules{});
  for (int step = 0; step < 2000; ++step) {
    EXPECT_EQ(scale.begin_step(), 65536);
    scale.tell(false);
  }
  EXPECT_EQ(scale.begin_step(), 131072);
  EXPECT_EQ(scale.good_steps(), 0);
}

TEST(LossScaleTest, FallsToTheMinimumAndNoFurther) {
  LossScale scale(LossScaleRules{});
  double expected = 65536;
  for (int step = 1; step <= 20; ++step) {
    EXPECT_FALSE(scale.has_failed()) << step;
    EXPECT_EQ(scale.is_at_minimum(), expected == 1) << step;
    EXPECT_EQ(scale.begin_step(), expected);
    scale.tell(true);
    expected = std::max(1.0, expected / 2);
    EXPECT_EQ(scale.skipped_in_a_row(), step);
  }
  EXPECT_TRUE(scale.has_failed());
}

TEST(LossScaleTest, OneGoodStepEndsARowOfSkippedOnes) {
  LossScale scale(LossScaleRules{});
  for (int step = 0; step < 19; ++step) scale.begin_step(), scale.tell(true);
  scale.begin_step();
  scale.tell(false);
  EXPECT_EQ(scale.skipped_in_a_row(), 0);
  EXPECT_EQ(scale.good_steps(), 1);
}

TEST(LossScaleTest, StaysWithinFloat32) {
  LossScale scale(LossScaleRules{.initial = std::ldexp(1, 126), .growth_interval = 1});
  for (int step = 0; step < 5; ++step) {
    EXPECT_LE(scale.begin_step(), std::ldexp(1, 127));
    scale.tell(false);
  }
  EXPECT_EQ(scale.scale(), std::ldexp(1, 127));
}

// ---- outcomes that are late ---------------------------------------------------------------------

TEST(LossScaleTest, AnOutcomeHasItsEffectAtItsStepWheneverItIsTold) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 100; ++round) {
    std::vector<bool> skipped(100);
    for (size_t step = 0; step < skipped.size(); ++step) skipped[step] = random() % 5 == 0;
    for (const int delay : {1, 2}) {
      const LossScale start(rules(3, delay));
      const std::vector<double> expected = scales(start, skipped, 0);
      for (int late = 1; late <= delay; ++late) {
        ASSERT_EQ(scales(start, skipped, late), expected) << "delay " << delay << " late " << late;
      }
    }
  }
}

TEST(LossScaleTest, ARowOfStepsThatOverflowAtOneScaleLowersItOnce) {
  // Step 2 overflows; 3 has begun with the same scale and overflows too; from 4 on it is half.
  const std::vector<bool> skipped = {false, false, true, true, false, false};
  EXPECT_EQ(scales(LossScale(rules(100, 1)), skipped, 1),
            (std::vector<double>{65536, 65536, 65536, 65536, 32768, 32768}));
  // Step 4, the first one with the half, overflows as well: half of that from step 6 on.
  EXPECT_EQ(
      scales(LossScale(rules(100, 1)), {false, false, true, true, true, true, false, false}, 1),
      (std::vector<double>{65536, 65536, 65536, 65536, 32768, 32768, 16384, 16384}));
}

TEST(LossScaleTest, GoodStepsOfTheScaleBeforeDoNotCountForGrowth) {
  // Grows after 2 good steps at one scale. Late by one: steps 0 and 1 are known to be good when step 3 begins, and 2 was begun
  // with the old scale, so it does not count, and 3 and 4 bring the next rise, for step 6.
  EXPECT_EQ(
      scales(LossScale(rules(2, 1)), std::vector<bool>(9, false), 1),
      (std::vector<double>{65536, 65536, 65536, 131072, 131072, 131072, 262144, 262144, 262144}));
  // Without a delay every second step.
  EXPECT_EQ(scales(LossScale(rules(2)), std::vector<bool>(5, false), 0),
            (std::vector<double>{65536, 65536, 131072, 131072, 262144}));
}

TEST(LossScaleTest, SavedAtAnyStepItGoesOnAsIfItHadNotStopped) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::vector<bool> skipped(60);
  for (size_t step = 0; step < skipped.size(); ++step) skipped[step] = random() % 4 == 0;
  for (const int delay : {0, 1, 2}) {
    const std::vector<double> expected = scales(LossScale(rules(3, delay)), skipped, 0);
    for (size_t stop = 0; stop < skipped.size(); ++stop) {
      LossScale first(rules(3, delay));
      for (size_t step = 0; step < stop; ++step) first.begin_step(), first.tell(skipped[step]);
      LossScale second(rules(3, delay), static_cast<int64_t>(stop), first.state());
      for (size_t step = stop; step < skipped.size(); ++step) {
        ASSERT_EQ(second.begin_step(), expected[step])
            << "delay " << delay << ", stopped before step " << stop << ", step " << step;
        second.tell(skipped[step]);
      }
    }
  }
}

TEST(LossScaleDeathTest, CallsOutOfOrderAreOurBug) {
  LossScale scale(rules(2));
  EXPECT_DEATH(scale.tell(false), "told of once");
  scale.begin_step();
  EXPECT_DEATH(scale.begin_step(), "before it is known");
  EXPECT_DEATH(scale.state(), "known what became");
}

}  // namespace
}  // namespace fusedbun::train
