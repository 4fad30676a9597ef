// Bfloat16 parameters with a remainder, and without anything beside them: against masters, and against the scalar functions.
#include "fusedbun/core/low_precision.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/fusedbun.h"
#include "fusedbun/core/segment_step.h"
#include "fusedbun/core/stochastic_rounding.h"
#include "fusedbun/tests/core/random_segment.h"

namespace fusedbun {
namespace {

constexpr int64_t kIndex = 5;  // of the parameter

struct Rows {
  torch::Tensor parameter;
  RowRange range;
  SegmentState state;

  Rows(const torch::Tensor& values, const RowRange& rows, const Options& options)
      : parameter(values.clone()), range(rows), state(make_segment_state(values, rows, options)) {}

  /// Returns the sum of squares of the new values.
  double step(const torch::Tensor& gradient, const Options& options, int64_t t) {
    SegmentStep step;
    step.parameter = parameter;
    step.parameter_index = kIndex;
    step.gradients = {gradient};
    step.range = range;
    double squares = 0;
    step.parameter_sum_of_squares = &squares;
    step.scalars = step_scalars(options, t, 0.5);
    if (const int64_t entries = column_entries(range, options); entries > 0) {
      step.column_partials =
          at::zeros({entries}, columns_are_maxima(options) ? at::kFloat : at::kDouble);
    }
    begin_step(step, state, options);
    absorb_columns(step.column_partials, range, step.scalars, state, options);
    finish_step(step, state, options);
    return squares;
  }
};

uint32_t word_of(float value) {
  return std::bit_cast<uint32_t>(value);
}
uint16_t half_of(const torch::Tensor& bf16, int64_t i) {
  return static_cast<uint16_t>(bf16.view(at::kShort).flatten()[i].item<int16_t>());
}

// The pass and the reference.
class LowPrecisionStep : public ::testing::TestWithParam<bool> {
 protected:
  LowPrecisionStep() {
    at::manual_seed(test_seed());
    if (GetParam()) reference_ = std::make_unique<ForceReference>();
  }
  std::unique_ptr<ForceReference> reference_;
};
INSTANTIATE_TEST_SUITE_P(Paths, LowPrecisionStep, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "reference" : "pass"; });

TEST_P(LowPrecisionStep, ARemainderAndItsParameterAreTheMaster) {
  for (const RowRange& range : {RowRange{3, 16, 40, 37, false}, RowRange{0, 67, 67, 1, true}}) {
    for (const Options& chosen : fused_options()) {
      SCOPED_TRACE(describe(chosen));
      const torch::Tensor start = at::randn({range.rows(), range.columns}).to(at::kBFloat16);
      Options options = chosen;
      Rows with_master(start, range, options);
      options.low_precision = LowPrecision::remainder;
      Rows with_both(start, range, options);
      for (int64_t t = 1; t <= 3; ++t) {
        const torch::Tensor g = at::randn({range.rows(), range.columns});
        const double want = with_master.step(g, chosen, t);
        EXPECT_EQ(with_both.step(g, options, t), want);
        const torch::Tensor values = with_remainder(with_both.parameter, with_both.state.remainder);
        ASSERT_TRUE(values.equal(with_master.state.master));
        ASSERT_TRUE(values.equal(stepped_values(with_both.parameter, with_both.state)));
        // Rounded to nearest; half units up, where a master's go to the even one.
        const torch::Tensor is_half =
            with_both.state.remainder.eq(std::numeric_limits<int16_t>::min());
        ASSERT_TRUE(
            with_both.parameter.eq(with_master.parameter).logical_or(is_half).all().item<bool>());
      }
    }
  }
}

TEST_P(LowPrecisionStep, RoundsStochasticallyAsTheScalarFunctionSays) {
  for (const RowRange& range : {RowRange{3, 16, 40, 37, false}, RowRange{7, 74, 99, 1, true}}) {
    for (const Options& chosen : fused_options()) {
      SCOPED_TRACE(describe(chosen));
      Options options = chosen;
      options.low_precision = LowPrecision::stochastic;
      Rows rounded(at::randn({range.rows(), range.columns}).to(at::kBFloat16), range, options);
      EXPECT_FALSE(rounded.state.master.defined() || rounded.state.remainder.defined());
      for (int64_t t = 1; t <= 3; ++t) {
        Rows wide(rounded.parameter.to(at::kFloat), range, chosen);
        const torch::Tensor g = at::randn({range.rows(), range.columns});
        std::vector<torch::Tensor> before;
        visit_tensors(rounded.state, [&](const char*, torch::Tensor& tensor) {
          before.push_back(tensor.defined() ? tensor.clone() : tensor);
        });
        size_t next = 0;
        visit_tensors(wide.state,
                      [&](const char*, torch::Tensor& tensor) { tensor = before[next++]; });
        const double squares = rounded.step(g, options, t);
        wide.step(g, chosen, t);
        const uint32_t seed = rounding_seed(step_seed(t), parameter_seed(kIndex));
        const torch::Tensor values = wide.parameter.flatten();
        for (int64_t i = 0; i < values.numel(); ++i) {
          const uint32_t random = rounding_bits(seed, range.row_begin * range.columns + i);
          ASSERT_EQ(half_of(rounded.parameter, i),
                    stochastically_rounded(word_of(values[i].item<float>()), random))
              << i;
        }
        // Of what is kept, which is all that a restarted run has.
        const double kept = rounded.parameter.to(at::kDouble).square().sum().item<double>();
        EXPECT_NEAR(squares, kept, 1e-12 * kept);
      }
    }
  }
}

// A value of 1 + x/128 lies between 1 and 1 + 1/128: it goes up with the probability x.
TEST_P(LowPrecisionStep, TheMeanOfManyRoundingsIsTheValue) {
  constexpr int64_t kElements = 1 << 18;
  Options options = preset("elementwise", 0);
  options.Lambda = 0;
  options.low_precision = LowPrecision::stochastic;
  for (const double x : {0.001, 0.25, 0.5, 0.97}) {
    // The step makes it of 1: lr·u with u = 1, as heavy-ball SGD has it.
    options.lr = x / 128;
    options.use_rms = options.centralize = false;
    Rows rows(at::ones({kElements, 1}, at::kBFloat16), {0, kElements, kElements, 1, true}, options);
    rows.step(at::full({kElements, 1}, -1.0f), options, 1);
    const double up = rows.parameter.to(at::kFloat).gt(1).to(at::kDouble).mean().item<double>();
    const double deviation = std::sqrt(x * (1 - x) / static_cast<double>(kElements));
    EXPECT_NEAR(up, x, 5 * deviation + 1.0 / 65536) << x;
    EXPECT_TRUE(rows.parameter.eq(1).logical_or(rows.parameter.eq(1.0078125)).all().item<bool>());
  }
}

// A thousand steps of a thousandth of bfloat16's resolution: nearest rounding would stay where it was.
TEST_P(LowPrecisionStep, SmallStepsAddUp) {
  constexpr int64_t kElements = 4096;
  Options options = preset("elementwise", 1.0 / 128 / 1000);
  options.Lambda = options.momentum_beta = 0;
  options.use_rms = options.centralize = false;
  for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
    options.low_precision = kept;
    Rows rows(at::ones({kElements, 1}, at::kBFloat16), {0, kElements, kElements, 1, true}, options);
    const torch::Tensor g = at::full({kElements, 1}, -1.0f);
    for (int64_t t = 1; t <= 1000; ++t) rows.step(g, options, t);
    // A walk of 1,000 steps: its deviation is sqrt(1000 · 0.001) units, of the mean of 4,096 walks a 64th of that.
    const double mean = rows.parameter.to(at::kDouble).mean().item<double>();
    EXPECT_NEAR((mean - 1) * 128, 1, 5.0 / 64) << name_of(kept);
  }
}

TEST_P(LowPrecisionStep, WhatTheProgramWritesIsTheParameter) {
  Options options = preset("recommended", 0);  // nothing moves
  for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
    options.low_precision = kept;
    Rows rows(at::ones({2, 4}, at::kBFloat16), {0, 2, 2, 4, false}, options);
    if (kept ==
        LowPrecision::remainder)  // of values in the upper half: the parameters are one unit above
      rows.state.remainder.fill_(std::numeric_limits<int16_t>::min());
    for (const double written : {0.0, -0.0, 2.0, -3e38, 1e-40}) {
      rows.parameter.fill_(written);
      const torch::Tensor values = rows.parameter.clone();
      rows.step(at::randn({2, 4}), options, 1);
      EXPECT_TRUE(rows.parameter.equal(values)) << written;
    }
  }
}

TEST_P(LowPrecisionStep, NaNAndInfinityStay) {
  Options options = preset("recommended", 0);
  options.Lambda = 0;
  for (const LowPrecision kept : {LowPrecision::remainder, LowPrecision::stochastic}) {
    options.low_precision = kept;
    const double infinity = std::numeric_limits<double>::infinity();
    const torch::Tensor start =
        at::tensor({std::nan(""), infinity, -infinity, 1.0}).view({1, 4}).to(at::kBFloat16);
    Rows rows(start, {0, 1, 1, 4, false}, options);
    for (int64_t t = 1; t <= 2; ++t) rows.step(at::ones({1, 4}), options, t);
    EXPECT_EQ(half_of(rows.parameter, 0), 0x7fc0);
    EXPECT_TRUE(rows.parameter.narrow(1, 1, 3).equal(start.narrow(1, 1, 3)));
  }
}

// Many words that look alike: consecutive elements, consecutive steps.
TEST(RoundingBits, AreSpreadEvenly) {
  int count[16] = {};
  for (int64_t t = 1; t <= 64; ++t) {
    const uint32_t seed = rounding_seed(step_seed(t), parameter_seed(0));
    for (int64_t element = 0; element < 1024; ++element)
      ++count[rounding_bits(seed, element) >> 12];
  }
  // 65,536 draws, 4,096 for each: a deviation of 62.
  for (const int drawn : count) EXPECT_NEAR(drawn, 4096, 5 * 62);
}

TEST(LowPrecision, IsRefusedForFloat16) {
  std::vector<torch::Tensor> parameters = {at::ones({3, 4}, at::kHalf)};
  parameters[0].mutable_grad() = at::ones({3, 4}, at::kHalf);
  Options options = preset("recommended", 1e-3);
  options.low_precision = LowPrecision::stochastic;
  Fusedbun optimizer(parameters, FusedbunOptions(options));
  try {
    optimizer.step();
    FAIL() << "float16 was taken";
  } catch (const ConfigError& error) {
    EXPECT_EQ(std::string(error.what()),
              "low_precision = stochastic is for bfloat16 parameters, and parameter 0 of group 0 "
              "[3, 4] is float16: give it low_precision = master, or bfloat16");
  }
}

}  // namespace
}  // namespace fusedbun
