#include "fusedbun/core/loss_scale.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

namespace fusedbun {
namespace {

/// torch.amp.GradScaler in four lines: scale and growth tracker after a step.
struct GradScaler {
  float scale = 65536;
  int64_t tracker = 0;
  void update(bool found_inf, int64_t growth_interval) {
    tracker = found_inf ? 0 : tracker + 1;
    if (found_inf) scale *= 0.5F;
    if (tracker == growth_interval) scale *= 2, tracker = 0;
  }
};

TEST(LossScale, IsGradScaler) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    const LossScaleRules rules{.growth_interval = 1 + static_cast<int64_t>(random() % 6)};
    GradScaler expected;
    LossScaleState state{.scale = rules.initial};
    for (int step = 0; step < 200 && expected.scale < 1e30F; ++step) {
      const bool skipped = expected.scale > 2 && random() % 4 == 0;
      expected.update(skipped, rules.growth_interval);
      state = after_step(rules, state, skipped);
      ASSERT_EQ(state.scale, expected.scale) << "step " << step;
      ASSERT_EQ(state.good_steps, expected.tracker) << "step " << step;
    }
  }
}

TEST(LossScale, GrowsAfterTwoThousandGoodSteps) {
  const LossScaleRules rules;
  LossScaleState state{.scale = rules.initial};
  for (int step = 0; step < 1999; ++step) state = after_step(rules, state, false);
  EXPECT_EQ(state, (LossScaleState{.scale = 65536, .good_steps = 1999}));
  EXPECT_EQ(after_step(rules, state, false), (LossScaleState{.scale = 131072}));
  // One that was skipped begins the count anew.
  EXPECT_EQ(after_step(rules, state, true),
            (LossScaleState{.scale = 32768, .good_steps = 0, .skipped_in_a_row = 1}));
}

TEST(LossScale, FallsToTheMinimumAndNoFurther) {
  const LossScaleRules rules{.initial = 10, .backoff = 0.25F, .minimum = 2};
  LossScaleState state{.scale = rules.initial};
  for (const float expected : {2.5F, 2.0F, 2.0F}) {
    state = after_step(rules, state, true);
    EXPECT_EQ(state.scale, expected);
  }
  EXPECT_EQ(state.skipped_in_a_row, 3);
  EXPECT_EQ(after_step(rules, state, false).skipped_in_a_row, 0);
}

TEST(LossScale, RisesNoFurtherThanFloat32) {
  const LossScaleRules rules{.growth_interval = 1};
  constexpr float kLargest = std::numeric_limits<float>::max();
  EXPECT_EQ(after_step(rules, {.scale = kLargest / 2}, false).scale, kLargest);
  EXPECT_EQ(after_step(rules, {.scale = kLargest}, false).scale, kLargest);
}

}  // namespace
}  // namespace fusedbun
