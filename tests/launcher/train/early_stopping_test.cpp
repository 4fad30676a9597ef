#include "fusedbun/launcher/train/early_stopping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "fusedbun/core/error.h"

namespace fusedbun::train {
namespace {

/// The validation, counted from 0, at which a run with these losses stops; -1: none.
int64_t stops_at(const EarlyStopping& rule, const std::vector<double>& losses) {
  ValidationHistory history;
  for (size_t i = 0; i < losses.size(); ++i) {
    history = after_validation(history, rule, static_cast<int64_t>(i) * 10, losses[i]);
    if (is_time_to_stop(history, rule)) return static_cast<int64_t>(i);
  }
  return -1;
}

TEST(EarlyStopping, WaitsForAsManyValidationsInARowAsItWasTold) {
  EXPECT_EQ(stops_at({.patience = 2}, {5, 4, 4.5, 3, 3.5, 3, 2}), 5) << "equal is not better";
  EXPECT_EQ(stops_at({.patience = 3}, {5, 4, 4.5, 3, 3.5, 3, 2}), -1);
  EXPECT_EQ(stops_at({.patience = 1}, {5, 6}), 1);
  EXPECT_EQ(stops_at({}, {5, 6, 7, 8}), -1) << "it is off";
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(stops_at({.patience = 2}, {kNan, kNan}), 1);
}

TEST(EarlyStopping, SmallGainsCountTogether) {
  const EarlyStopping rule{.patience = 2, .min_delta = 0.1};
  EXPECT_EQ(stops_at(rule, {5, 4.95, 4.92, 4}), 2);
  EXPECT_EQ(stops_at(rule, {5, 4.95, 4.89, 4.85, 4.78}), -1)
      << "4.89 is better than 5 by more than 0.1, and 4.78 than 4.89";
}

TEST(EarlyStopping, KnowsTheBestValidationWhateverTheDelta) {
  const EarlyStopping rule{.patience = 9, .min_delta = 1};
  ValidationHistory history;
  const std::vector<double> losses = {5, 4.5, 4.7, 4.5};
  for (size_t i = 0; i < losses.size(); ++i)
    history = after_validation(history, rule, static_cast<int64_t>(i) * 10, losses[i]);
  EXPECT_EQ(history.best, (BestValidation{10, 4.5})) << "the first of equal ones";
  EXPECT_EQ(history.reference, 5);
  EXPECT_EQ(history.without_better, 3);
}

TEST(EarlyStopping, RefusesWhatCannotBe) {
  EXPECT_THROW(validate(EarlyStopping{.patience = -1}, 50), ConfigError);
  EXPECT_THROW(validate(EarlyStopping{.patience = 1, .min_delta = -1}, 50), ConfigError);
  EXPECT_THROW(validate(EarlyStopping{.min_delta = 0.1}, 50), ConfigError);
  EXPECT_THROW(validate(EarlyStopping{.patience = 1}, 0), ConfigError);
  EXPECT_NO_THROW(validate(EarlyStopping{.patience = 1, .min_delta = 0.1}, 50));
  EXPECT_NO_THROW(validate(EarlyStopping{}, 0));
}

}  // namespace
}  // namespace fusedbun::train
