#include "fusedbun/launcher/train/optimizer_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

TEST(OptimizerChoice, EveryPresetHasALearningRateOfItsOwn) {
  for (const std::string& name : preset_names()) {
    OptimizerChoice choice;
    choice.preset = name;
    const Options options = options_of(choice);
    EXPECT_GT(options.lr, 0) << name;
    EXPECT_EQ(options.momentum_beta, preset(name, 1).momentum_beta) << name;
  }
}

TEST(OptimizerChoice, WhatIsGivenWins) {
  OptimizerChoice choice;
  choice.lr = 0.5;
  choice.eps = 1e-6;
  choice.weight_decay = 0.25;
  choice.beta_decay = 0.7;
  choice.momentum_beta = 0.95;
  choice.momentum_bf16 = true;
  choice.propagate_nonfinite = true;
  const Options options = options_of(choice);
  EXPECT_EQ(options.lr, 0.5);
  EXPECT_EQ(options.eps, 1e-6);
  EXPECT_EQ(options.Lambda, 0.25);
  EXPECT_EQ(options.beta_decay, 0.7);
  EXPECT_EQ(options.momentum_beta, 0.95);
  EXPECT_EQ(options.momentum_dtype, MomentumDtype::bf16);
  EXPECT_EQ(options.nonfinite, Nonfinite::propagate);
}

TEST(OptimizerChoice, SwitchesOfTheDescriptionsWinInBothDirections) {
  OptimizerChoice choice;
  choice.preset = "fusion";
  EXPECT_EQ(describe(options_of(choice)), describe(preset("fusion", options_of(choice).lr)));
  choice.centralize = choice.use_rms = choice.prepare_hessian = true;
  choice.mask = Mask::off;
  const Options on = options_of(choice);
  EXPECT_TRUE(on.centralize && on.use_rms && on.prepare_hessian);
  EXPECT_EQ(on.mask, Mask::off);
  choice.preset = "elementwise";
  choice.centralize = choice.use_rms = choice.prepare_hessian = false;
  choice.mask = Mask::zero;
  const Options off = options_of(choice);
  EXPECT_FALSE(off.centralize || off.use_rms || off.prepare_hessian);
  EXPECT_EQ(off.mask, Mask::zero);
}

TEST(OptimizerChoice, AStepThatNothingNormalisesTakesALargerRate) {
  OptimizerChoice choice;
  choice.preset = "fusedbun";
  const double as_sgd = options_of(choice).lr;
  choice.use_rms = true;
  EXPECT_GT(as_sgd, 10 * options_of(choice).lr);
}

TEST(OptimizerChoice, FusedbunsOwnSwitchesAreRefusedForAdamw) {
  for (int which = 0; which < 4; ++which) {
    OptimizerChoice choice;
    choice.kind = OptimizerKind::adamw;
    if (which == 0) choice.centralize = true;
    if (which == 1) choice.use_rms = false;
    if (which == 2) choice.prepare_hessian = true;
    if (which == 3) choice.mask = Mask::hold;
    EXPECT_THAT([&] { options_of(choice); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr("--optimizer fusedbun")));
  }
}

TEST(OptimizerChoice, BadValuesAreRefusedForBothKinds) {
  for (const OptimizerKind kind : {OptimizerKind::fusedbun, OptimizerKind::adamw}) {
    OptimizerChoice choice;
    choice.kind = kind;
    choice.lr = std::numeric_limits<double>::quiet_NaN();
    EXPECT_THAT([&] { options_of(choice); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr("lr")));
    choice.lr = 1e-3;
    choice.momentum_beta = 1.0;
    EXPECT_THAT([&] { options_of(choice); },
                testing::ThrowsMessage<ConfigError>(testing::HasSubstr("momentum_beta")));
  }
  OptimizerChoice unknown;
  unknown.preset = "recomended";
  EXPECT_THAT([&] { options_of(unknown); },
              testing::ThrowsMessage<ConfigError>(testing::HasSubstr("recommended")));
}

}  // namespace
}  // namespace fusedbun::train
