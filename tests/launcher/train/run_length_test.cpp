#include "fusedbun/launcher/train/run_length.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

constexpr SampleCounts kCounts{.batch = 32, .context = 64, .samples = 10'000};

TEST(RunLength, StepsEpochsAndTokensBecomeSteps) {
  EXPECT_EQ(steps_of({}, kCounts), 300);
  EXPECT_EQ(steps_of({.steps = 7}, kCounts), 7);
  EXPECT_EQ(steps_of({.epochs = 2}, kCounts), 625);
  EXPECT_EQ(steps_of({.epochs = 0.5}, kCounts), 157) << "156.25: the last step goes beyond it";
  EXPECT_EQ(steps_of({.tokens = 2048}, kCounts), 1);
  EXPECT_EQ(steps_of({.tokens = 2049}, kCounts), 2);
  EXPECT_EQ(steps_of({.epochs = 1e-9}, kCounts), 1);
  EXPECT_EQ(steps_of({.epochs = 0.3}, {.batch = 10, .context = 1, .samples = 100}), 3)
      << "0.3 is a little more than three tenths";
}

TEST(RunLength, TokensMayHaveASuffix) {
  EXPECT_EQ(parse_tokens("1500"), 1500);
  EXPECT_EQ(parse_tokens("20.5M"), 20'500'000);
  EXPECT_EQ(parse_tokens("3k"), 3000);
  EXPECT_EQ(parse_tokens("1G"), 1'000'000'000);
  for (const char* bad : {"", "M", "5T", "5MM", "-3k", "0", "0.1", "nan", "1e30"}) {
    EXPECT_THROW(parse_tokens(bad), ConfigError) << bad;
  }
}

TEST(RunLength, IsSaidOnceAndInRange) {
  const auto refusal = [](const RunLength& length) -> std::string {
    try {
      validate(length);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal({.steps = 5, .epochs = 1}), HasSubstr("give one of them"));
  EXPECT_THAT(refusal({.epochs = 1, .tokens = 1}), HasSubstr("give one of them"));
  EXPECT_THAT(refusal({.steps = 0}), HasSubstr("--steps = 0"));
  EXPECT_THAT(refusal({.epochs = 0}), HasSubstr("--epochs = 0"));
  EXPECT_THAT(refusal({.epochs = std::numeric_limits<double>::infinity()}),
              HasSubstr("--epochs = inf"));
  EXPECT_THAT(refusal({.tokens = 0}), HasSubstr("--tokens = 0"));
  EXPECT_EQ(refusal({}), "");
}

TEST(RunLength, ASentenceSaysWhatTheRunWillBe) {
  EXPECT_EQ(describe_length(625, {.batch = 32, .context = 1024, .samples = 10'000}),
            "625 steps: 2 epochs of 10,000 sequences, 20.5 M tokens");
  EXPECT_EQ(describe_length(1, {.batch = 4, .context = 32, .samples = 4}),
            "1 step: 1 epoch of 4 sequences, 128 tokens");
  EXPECT_EQ(describe_length(300, {.batch = 16, .context = 128, .samples = 1'234'567}),
            "300 steps: 0.00389 epochs of 1,234,567 sequences, 614 k tokens");
}

}  // namespace
}  // namespace fusedbun::train
