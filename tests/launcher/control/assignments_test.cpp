#include "fusedbun/launcher/control/assignments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::launcher {
namespace {

control::v1::HyperparameterValues values_of(const std::vector<std::string>& words) {
  return read_assignments(words, "all").values();
}

std::string usage_error(const std::vector<std::string>& words) {
  try {
    read_assignments(words, "all");
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Assignments, TakeTheOptimizersNamesAndTheContracts) {
  EXPECT_EQ(values_of({"lr=3e-4"}).learning_rate(), 3e-4);
  EXPECT_EQ(values_of({"learning_rate=3e-4"}).learning_rate(), 3e-4);
  const auto values =
      values_of({"Lambda=0.01", "use_rms=off", "centralize=true", "max_grad_norm=0"});
  EXPECT_EQ(values.weight_decay(), 0.01);
  EXPECT_FALSE(values.use_rms());
  EXPECT_TRUE(values.has_use_rms());
  EXPECT_TRUE(values.centralize());
  EXPECT_TRUE(values.has_max_grad_norm());
}

TEST(Assignments, TakeTheNamesOfTheTrainersFlags) {
  EXPECT_EQ(values_of({"clip=0.5"}).max_grad_norm(), 0.5);
  EXPECT_EQ(values_of({"weight_decay=0.5"}).weight_decay(), 0.5);
  EXPECT_EQ(values_of({"weight-decay=0.5"}).weight_decay(), 0.5);
  EXPECT_EQ(values_of({"beta-decay=0.5"}).beta_decay(), 0.5);
  EXPECT_THAT(usage_error({"clip=1", "max_grad_norm=2"}), testing::HasSubstr("given twice"));
}

TEST(Assignments, ScheduleUnpins) {
  EXPECT_TRUE(values_of({"lr=schedule"}).unpin_learning_rate());
  EXPECT_FALSE(values_of({"lr=schedule"}).has_learning_rate());
}

TEST(Assignments, AllMeansEveryGroup) {
  EXPECT_EQ(read_assignments({}, "all").group(), "*");
  EXPECT_EQ(read_assignments({}, "head").group(), "head");
}

TEST(Assignments, WrongWordsAreNamed) {
  EXPECT_THAT(usage_error({"lr"}), testing::HasSubstr("'lr' is not NAME=VALUE"));
  EXPECT_THAT(usage_error({"=1"}), testing::HasSubstr("is not NAME=VALUE"));
  EXPECT_THAT(usage_error({"lamda=1"}), testing::HasSubstr("did you mean Lambda?"));
  EXPECT_THAT(usage_error({"accumulator=sm3"}),
              testing::HasSubstr("cannot be changed while a job runs"));
  EXPECT_THAT(usage_error({"lr=fast"}), testing::HasSubstr("'fast' is not a number"));
  EXPECT_THAT(usage_error({"lr=1e-3x"}), testing::HasSubstr("is not a number"));
  EXPECT_THAT(usage_error({"use_rms=2"}), testing::HasSubstr("true or false"));
  EXPECT_THAT(usage_error({"lr=1", "learning_rate=2"}), testing::HasSubstr("given twice"));
}

TEST(Assignments, WhatIsANumberButNotAllowedIsForTheJobToSay) {
  EXPECT_EQ(values_of({"lr=-1"}).learning_rate(), -1);
  EXPECT_TRUE(values_of({"lr=nan"}).has_learning_rate());
}

TEST(Assignments, TheHelpNamesThemAll) {
  EXPECT_THAT(assignable_names(), testing::HasSubstr("Lambda"));
  EXPECT_THAT(assignable_names(), testing::HasSubstr("lr_scale"));
}

}  // namespace
}  // namespace fusedbun::launcher
