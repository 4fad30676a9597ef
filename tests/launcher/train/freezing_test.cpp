#include "fusedbun/launcher/train/freezing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

const std::vector<std::string> kNames = {"wte.weight", "h.0.ln_1.weight", "h.0.attn.c_attn.weight",
                                         "h.4.mlp.c_fc.bias", "ln_f.weight"};

std::vector<bool> frozen(const std::vector<std::string>& patterns) {
  return match_frozen(patterns, kNames);
}

std::string refusal(const std::vector<std::string>& patterns) {
  try {
    frozen(patterns);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Freezing, PatternsAreAShellsAndTogether) {
  EXPECT_EQ(frozen({}), (std::vector<bool>{false, false, false, false, false}));
  EXPECT_EQ(frozen({"wte.*"}), (std::vector<bool>{true, false, false, false, false}));
  EXPECT_EQ(frozen({"h.[0-3].*"}), (std::vector<bool>{false, true, true, false, false}));
  EXPECT_EQ(frozen({"*.bias", "ln_f.weigh?"}),
            (std::vector<bool>{false, false, false, true, true}));
}

TEST(Freezing, WhatMatchesNothingIsRefusedWithTheNearestNames) {
  const std::string sentence = refusal({"wte.*", "h.0.ln_2.weight"});
  EXPECT_THAT(sentence, testing::HasSubstr("--freeze h.0.ln_2.weight matches no parameter"));
  EXPECT_THAT(sentence, testing::HasSubstr("the nearest names are h.0.ln_1.weight, "));
}

TEST(Freezing, SomethingIsLeftToTrain) {
  EXPECT_THAT(refusal({"*"}), testing::HasSubstr("nothing is left to train"));
  EXPECT_EQ(refusal({"*.weight"}), "");
}

}  // namespace
}  // namespace fusedbun::train
