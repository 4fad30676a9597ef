#include "fusedbun/dist/plan/agreement.h"

#include <cmath>
#include <limits>

#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<double> summed(const std::vector<std::vector<double>>& messages) {
  std::vector<double> sum = messages.at(0);
  for (size_t rank = 1; rank < messages.size(); ++rank) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += messages[rank].at(i);
  }
  return sum;
}

TEST(Agreement, IsWhatAnyRankSaw) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int round = 0; round < 2000; ++round) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " round " + std::to_string(round));
    const int64_t ranks = between(random, 1, 9), parameters = between(random, 0, 12);
    std::vector<std::vector<double>> messages;
    bool any_nonfinite = false;
    double sum_of_squares = 0;
    std::vector<bool> any_used(parameters);
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const bool nonfinite = chance(random, 0.1);
      const double squares = static_cast<double>(between(random, 0, 100));
      std::vector<bool> used(parameters);
      for (int64_t p = 0; p < parameters; ++p) {
        used[p] = chance(random, 0.3);
        any_used[p] = any_used[p] || used[p];
      }
      any_nonfinite = any_nonfinite || nonfinite;
      sum_of_squares += squares;
      messages.push_back(agreement_message(nonfinite, squares, used));
    }
    const double max_grad_norm = static_cast<double>(between(random, 0, 10));
    const Agreement agreement = read_agreement(summed(messages), max_grad_norm);
    EXPECT_EQ(agreement.nonfinite, any_nonfinite);
    EXPECT_EQ(agreement.used, any_used);
    EXPECT_EQ(agreement.gradient_norm, std::sqrt(sum_of_squares));
    const bool clipped = max_grad_norm > 0 && std::sqrt(sum_of_squares) > max_grad_norm;
    EXPECT_EQ(agreement.gradient_scale, clipped ? max_grad_norm / std::sqrt(sum_of_squares) : 1);
  }
}

TEST(Agreement, ClipsAboveTheNormOnly) {
  const auto scale = [](double sum_of_squares, double max_grad_norm) {
    return read_agreement(agreement_message(false, sum_of_squares, {}), max_grad_norm)
        .gradient_scale;
  };
  EXPECT_EQ(scale(25, 5), 1);
  EXPECT_EQ(scale(25, 2.5), 0.5);
  EXPECT_EQ(scale(25, 0), 1);  // off
  EXPECT_EQ(scale(0, 1), 1);
  EXPECT_EQ(scale(kInf, 1), 0);
  EXPECT_EQ(scale(kNaN, 1), 1);
}

TEST(Agreement, ANonfiniteNormLeavesTheCountsAlone) {
  const auto message = summed(
      {agreement_message(true, kNaN, {true, false}), agreement_message(false, 1, {false, false})});
  const Agreement agreement = read_agreement(message, 1);
  EXPECT_TRUE(agreement.nonfinite);
  EXPECT_EQ(agreement.used, (std::vector<bool>{true, false}));
}

TEST(AgreementDeathTest, AMessageHasItsTwoFirstEntries) {
  EXPECT_DEATH(read_agreement(std::vector<double>{0}, 0), "an agreement message of 1 entries");
}

}  // namespace
}  // namespace fusedbun::plan
