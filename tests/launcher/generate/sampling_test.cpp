#include "fusedbun/launcher/generate/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "fusedbun/core/error.h"

namespace fusedbun::generate {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::vector<int64_t> tokens_of(const std::vector<Candidate>& list) {
  std::vector<int64_t> tokens;
  for (const Candidate& each : list) tokens.push_back(each.token);
  return tokens;
}

// Probabilities 0.1, 0.5, 0.15, 0.25 at temperature 1.
const std::vector<float> kLogits = {std::log(0.1F), std::log(0.5F), std::log(0.15F),
                                    std::log(0.25F)};

TEST(SamplingTest, TheNucleusIsTheFewestOfTheLikeliestThatReachTopP) {
  const auto nucleus = [](double top_p) {
    return tokens_of(candidates(kLogits, {.temperature = 1, .top_p = top_p}));
  };
  EXPECT_THAT(nucleus(1e-9), ElementsAre(1));
  EXPECT_THAT(nucleus(0.49), ElementsAre(1));
  EXPECT_THAT(nucleus(0.51), ElementsAre(1, 3));
  EXPECT_THAT(nucleus(0.76), ElementsAre(1, 3, 2));
  EXPECT_THAT(nucleus(0.91), ElementsAre(1, 3, 2, 0));
  EXPECT_THAT(nucleus(1), ElementsAre(1, 3, 2, 0));
}

TEST(SamplingTest, ProbabilitiesAreThoseOfTheTemperatureAndAddUpToOne) {
  // 0.5 and 0.25 to the power of 2: 4 to 1.
  const auto sharp = candidates(kLogits, {.temperature = 0.5, .top_p = 0.8});
  ASSERT_THAT(tokens_of(sharp), ElementsAre(1, 3));
  EXPECT_NEAR(sharp[0].probability, 0.8, 1e-6);
  EXPECT_NEAR(sharp[1].probability, 0.2, 1e-6);
  const auto whole = candidates(kLogits, {.temperature = 1, .top_p = 1});
  const double expected[] = {0.5, 0.25, 0.15, 0.1};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(whole[i].probability, expected[i], 1e-6) << i;
}

TEST(SamplingTest, TemperatureZeroTakesTheFirstOfTheLikeliest) {
  const std::vector<float> logits = {1, 3, -2, 3};
  EXPECT_THAT(tokens_of(candidates(logits, {.temperature = 0, .top_p = 1})), ElementsAre(1));
  // One so small that every quotient but 0 is infinite does the same, with both of them.
  EXPECT_THAT(tokens_of(candidates(logits, {.temperature = 1e-300, .top_p = 1})),
              ElementsAre(1, 3));
}

TEST(SamplingTest, ATokenThatCannotBeIsNoCandidate) {
  const std::vector<float> logits = {0, -INFINITY, 0};
  EXPECT_THAT(tokens_of(candidates(logits, {.temperature = 1, .top_p = 1})), ElementsAre(0, 2));
}

TEST(SamplingTest, LogitsThatAreNotFiniteAreRefused) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const std::vector<float>& logits :
       {std::vector<float>{0, kNaN}, {kNaN, 0}, {0, INFINITY}, {-INFINITY, -INFINITY}}) {
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_THAT([&] { candidates(logits, {.temperature = temperature, .top_p = 1}); },
                  ThrowsMessage<DataError>(HasSubstr("not finite")));
    }
  }
}

TEST(SamplingTest, ChoosesTheOneInWhoseShareTheNumberIs) {
  const std::vector<Candidate> three = {{9, 0.5}, {4, 0.25}, {7, 0.25}};
  EXPECT_EQ(choose(three, 0), 9);
  EXPECT_EQ(choose(three, 0.4999), 9);
  EXPECT_EQ(choose(three, 0.5), 4);
  EXPECT_EQ(choose(three, 0.7499), 4);
  EXPECT_EQ(choose(three, 0.75), 7);
  const std::vector<Candidate> rounded = {{9, 0.3}, {4, 0.3}};
  EXPECT_EQ(choose(rounded, 0.99), 4);
}

TEST(SamplingTest, CountsFollowTheProbabilities) {
  const auto list = candidates(kLogits, {.temperature = 1, .top_p = 1});
  std::mt19937_64 random(3);
  std::map<int64_t, int> counts;
  constexpr int kDraws = 20'000;
  for (int i = 0; i < kDraws; ++i) ++counts[choose(list, std::ldexp(random() >> 11, -53))];
  const double expected[] = {0.1, 0.5, 0.15, 0.25};
  for (int token = 0; token < 4; ++token) {
    const double deviation = std::sqrt(expected[token] * (1 - expected[token]) / kDraws);
    EXPECT_NEAR(counts[token] / double{kDraws}, expected[token], 4 * deviation) << token;
  }
}

TEST(SamplingTest, ValuesThatCannotBeAreRefused) {
  const auto expect_refused = [](const SamplingOptions& options, const std::string& flag) {
    EXPECT_THAT([&] { validate(options); }, ThrowsMessage<ConfigError>(HasSubstr(flag)));
  };
  expect_refused({.temperature = -0.1}, "--temperature");
  expect_refused({.temperature = NAN}, "--temperature");
  expect_refused({.top_p = 0}, "--top-p");
  expect_refused({.top_p = 1.1}, "--top-p");
  expect_refused({.top_p = NAN}, "--top-p");
  EXPECT_NO_THROW(validate({.temperature = 0, .top_p = 1}));
}

}  // namespace
}  // namespace fusedbun::generate
