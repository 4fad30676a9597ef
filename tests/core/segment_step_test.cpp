// The fused CPU step against the reference, on random segments: parameters and every state tensor, over several steps.
#include "fusedbun/core/segment_step.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/core/random_segment.h"

namespace fusedbun {
namespace {

struct Shape {
  int64_t rows;
  int64_t columns;
  bool is_vector = false;
};
const Shape kShapes[] = {{7, 1}, {1, 37}, {19, 15}, {17, 48}, {3, 1041}, {53, 1, true}};

struct Stepped {
  torch::Tensor parameter;
  SegmentState state;
};

// One step of a whole matrix, as one process does it; the gradient is the sum of `gradients`.
// Returns the sum of squares of the new parameter.
double step(Stepped& run, const std::vector<torch::Tensor>& gradients, const Shape& shape,
            const Options& options, int64_t t, int64_t matrix_rows = 0) {
  SegmentStep step;
  step.parameter = run.parameter;
  step.gradients = gradients;
  step.range = {0, shape.rows, shape.rows, shape.columns, shape.is_vector, matrix_rows};
  double squares = 0;
  step.parameter_sum_of_squares = &squares;
  step.scalars = step_scalars(options, t, 0.5);
  step.scalars.gradient_divisor = 3;
  step.scalars.gradient_scale = 0.75;
  if (const int64_t entries = column_entries(step.range, options); entries > 0) {
    step.column_partials = at::zeros({entries}, columns_are_maxima(options)
                                                    ? arithmetic_type(run.parameter.scalar_type())
                                                    : at::kDouble);
  }
  begin_step(step, run.state, options);
  absorb_columns(step.column_partials, step.range, step.scalars, run.state, options);
  finish_step(step, run.state, options);
  return squares;
}

// Equal within `relative` of |want| + max|want|/10 (momentum cancels, so roundings of large terms are left in small
// sums); NaN and inf in place and sign.
testing::AssertionResult near(const torch::Tensor& have, const torch::Tensor& want,
                              double relative) {
  if (have.defined() != want.defined()) return testing::AssertionFailure() << "only one is stored";
  if (!have.defined()) return testing::AssertionSuccess();
  const torch::Tensor a = have.to(at::kDouble).flatten(), b = want.to(at::kDouble).flatten();
  const torch::Tensor finite = at::where(b.isfinite(), b.abs(), at::zeros_like(b));
  const torch::Tensor bound = (b.abs() + 0.1 * finite.max()) * relative;
  const torch::Tensor same =
      (a == b).logical_or(a.isnan().logical_and(b.isnan())).logical_or((a - b).abs() <= bound);
  if (same.all().item<bool>()) return testing::AssertionSuccess();
  const int64_t i = same.logical_not().nonzero()[0].item<int64_t>();
  return testing::AssertionFailure() << "element " << i << " is " << a[i].item<double>()
                                     << ", the reference has " << b[i].item<double>();
}

// Both paths do the same operations except for where they divide by corrections and multiply by lr, and in which order
// they add up means: a few roundings per step. A rounding that falls on the edge between two bfloat16 values changes
// the stored momentum by 2^-8 of itself, in float32 often enough to be met here. Centring leaves the rounding of a row's mean in
// an element that is thousands of times smaller, and the root brings that element back to size 1.
double tolerance(const Options& options, torch::ScalarType type) {
  if (type == at::kDouble) return 1e-11;
  return options.momentum_dtype == MomentumDtype::bf16 ? 1e-2 : 1e-5;
}

class FusedAgainstReference : public testing::TestWithParam<torch::ScalarType> {
 protected:
  void compare(const Options& options, const Shape& shape,
               const std::vector<torch::Tensor>& gradients) {
    const RowRange range{0, shape.rows, shape.rows, shape.columns, shape.is_vector};
    const torch::Tensor initial = at::randn({shape.rows, shape.columns}, GetParam());
    Stepped fused{initial.clone(), make_segment_state(initial, range, options)};
    Stepped reference{initial.clone(), make_segment_state(initial, range, options)};
    ASSERT_EQ(step_path(options, at::kCPU, GetParam()), StepPath::fused_cpu);
    for (size_t t = 1; t <= gradients.size(); ++t) {
      step(fused, {gradients[t - 1]}, shape, options, static_cast<int64_t>(t));
      const ForceReference forced;
      step(reference, {gradients[t - 1]}, shape, options, static_cast<int64_t>(t));
    }
    const double relative = tolerance(options, GetParam());
    EXPECT_TRUE(near(fused.parameter, reference.parameter, relative)) << "parameter";
    EXPECT_TRUE(near(fused.state.momentum_buffer, reference.state.momentum_buffer, relative))
        << "momentum_buffer";
    EXPECT_TRUE(near(fused.state.exp_avg_sq.full, reference.state.exp_avg_sq.full, relative))
        << "full";
    EXPECT_TRUE(near(fused.state.exp_avg_sq.row, reference.state.exp_avg_sq.row, relative))
        << "row";
    EXPECT_TRUE(near(fused.state.exp_avg_sq.col, reference.state.exp_avg_sq.col, relative))
        << "col";
    EXPECT_TRUE(near(fused.state.exp_hessian.full, reference.state.exp_hessian.full, relative))
        << "hessian full";
    EXPECT_TRUE(near(fused.state.exp_hessian.row, reference.state.exp_hessian.row, relative))
        << "hessian row";
    EXPECT_TRUE(near(fused.state.exp_hessian.col, reference.state.exp_hessian.col, relative))
        << "hessian col";
  }

  std::vector<torch::Tensor> random_gradients(const Shape& shape, std::mt19937_64& random) {
    std::vector<torch::Tensor> gradients;
    for (int t = 0; t < 3; ++t) {
      torch::Tensor g = at::empty({shape.rows, shape.columns}, at::kDouble);
      for (int64_t i = 0; i < g.numel(); ++i)
        g.data_ptr<double>()[i] = random_gradient<double>(random);
      gradients.push_back(g.to(GetParam()));
    }
    return gradients;
  }
};

TEST_P(FusedAgainstReference, OverAllPresetsAndSwitches) {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  at::manual_seed(seed);
  for (const Shape& shape : kShapes) {
    const auto gradients = random_gradients(shape, random);
    for (const Options& options : all_fused_options()) {
      SCOPED_TRACE(describe(options) + " on " + std::to_string(shape.rows) + "x" +
                   std::to_string(shape.columns));
      compare(options, shape, gradients);
      if (HasFailure()) return;
    }
  }
}

int threads_of_this_process() {
  int count = 0;
  for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
    ++count;
  return count;
}

TEST(FusedThreads, ABigSegmentIsSteppedByLibTorchsThreads) {
  // Compiled without OpenMP, at::parallel_for would run on one thread without a word.
  const Shape shape{4096, 256};
  const Options options = preset("recommended", 1e-2);
  const auto start = at::zeros({shape.rows, shape.columns});
  Stepped run{
      start.clone(),
      make_segment_state(start, {0, shape.rows, shape.rows, shape.columns, false}, options)};
  at::set_num_threads(threads_of_this_process() + 2);
  const int before = threads_of_this_process();
  step(run, {start}, shape, options, 1);
  EXPECT_GE(threads_of_this_process(), before + 1);
}

class FusedShortTypes : public testing::TestWithParam<torch::ScalarType> {};

TEST_P(FusedShortTypes, ParametersAreTheirMastersRoundingAndGradientsAreAddedUpInFloat32) {
  const torch::ScalarType type = GetParam();
  at::manual_seed(5);
  for (const std::string& name : preset_names()) {
    for (const Shape& shape : kShapes) {
      const Options options = preset(name, 1e-2);
      const RowRange range{0, shape.rows, shape.rows, shape.columns, shape.is_vector};
      const auto start = at::randn({shape.rows, shape.columns}).to(type);
      Stepped fused{start.clone(), make_segment_state(start, range, options)};
      Stepped reference{start.clone(), make_segment_state(start, range, options)};
      for (int64_t t = 1; t <= 3; ++t) {
        std::vector<torch::Tensor> gradients;
        for (int rank = 0; rank < 3; ++rank) {
          gradients.push_back(at::randn({shape.rows, shape.columns}).to(type));
        }
        step(fused, gradients, shape, options, t);
        const ForceReference forced;
        step(reference, gradients, shape, options, t);
      }
      EXPECT_TRUE(near(fused.state.master, reference.state.master, 1e-5)) << name;
      EXPECT_TRUE(fused.parameter.equal(fused.state.master.to(type))) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, FusedShortTypes, testing::Values(at::kBFloat16, at::kHalf),
                         [](const auto& info) { return c10::toString(info.param); });

TEST_P(FusedAgainstReference, NanAndInfGoTheSameWay) {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  at::manual_seed(seed);
  const Shape shape{19, 37};
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), HUGE_VAL}) {
    auto gradients = random_gradients(shape, random);
    gradients[1][4][33] = bad;
    for (const Options& options : all_fused_options()) {
      if (options.momentum_dtype == MomentumDtype::bf16 && GetParam() == at::kFloat)
        continue;  // edges, as above
      SCOPED_TRACE(describe(options) + ", a gradient of " + std::to_string(bad));
      compare(options, shape, gradients);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, FusedAgainstReference, testing::Values(at::kFloat, at::kDouble),
                         [](const auto& info) {
                           return info.param == at::kFloat ? "float32" : "float64";
                         });

TEST(SegmentStep, OptionsWithoutAFusedStepTakeTheReference) {
  Options options = preset("recommended", 1e-3);
  EXPECT_EQ(step_path(options, at::kCPU, at::kFloat), StepPath::fused_cpu);
  EXPECT_EQ(step_path(options, at::kCPU, at::kHalf), StepPath::reference);
  options.prepare_hessian = true;
  EXPECT_EQ(step_path(options, at::kCPU, at::kFloat), StepPath::fused_cpu);
  EXPECT_EQ(step_path(options, at::kCUDA, at::kFloat), StepPath::reference);
  options.hessian_source = HessianSource::external;
  EXPECT_EQ(step_path(options, at::kCPU, at::kFloat), StepPath::reference);
  options.prepare_hessian = false;
  options.denominator = Denominator::global;
  EXPECT_EQ(step_path(options, at::kCPU, at::kFloat), StepPath::reference);
}

TEST(SegmentStep, SquaresAreThoseOfTheElementsHoweverTheyLie) {
  const RowRange range{.row_begin = 0, .row_end = 3, .rows_total = 3, .columns = 2};
  const at::Tensor every_second = at::arange(12, at::kDouble).view({3, 4}).slice(1, 0, 4, 2);
  // 0, 2; 4, 6; 8, 10
  EXPECT_EQ(sum_of_squares(every_second, range, preset("compact", 1e-3)), 220);
}

TEST(SegmentStep, SeveralGradientsAreAddedUpInTheirOrder) {
  at::manual_seed(5);
  const Shape shape{18, 1041};
  const RowRange range{0, shape.rows, shape.rows, shape.columns, false};
  const torch::Tensor initial = at::randn({shape.rows, shape.columns});
  std::vector<torch::Tensor> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(at::randn_like(initial) * std::pow(10.0, 3 * i));
  const torch::Tensor sum =
      parts[0] + parts[1] + parts[2];  // float32: another order has other bits
  for (const Options& options : fused_options()) {
    for (const bool reference : {false, true}) {
      std::unique_ptr<ForceReference> forced;
      if (reference) forced = std::make_unique<ForceReference>();
      Stepped summed{initial.clone(), make_segment_state(initial, range, options)};
      step(summed, {sum}, shape, options, 1);
      Stepped in_parts{initial.clone(), make_segment_state(initial, range, options)};
      step(in_parts, parts, shape, options, 1);
      ASSERT_TRUE(in_parts.parameter.equal(summed.parameter)) << describe(options);
    }
  }
}

TEST(SegmentStep, AStackIsSteppedAsEachOfItsMatricesAlone) {
  at::manual_seed(6);
  constexpr int64_t kMatrices = 3;
  const Shape shape{5, 37}, stacked{kMatrices * shape.rows, shape.columns};
  const RowRange one{0, shape.rows, shape.rows, shape.columns, false};
  const RowRange all{0, stacked.rows, stacked.rows, shape.columns, false, shape.rows};
  std::vector<Options> all_options = all_fused_options();
  Options reference = preset("recommended", 1e-2);
  reference.prepare_hessian = true;
  reference.hessian_source = HessianSource::external;
  all_options.push_back(reference);
  reference.denominator = Denominator::global;
  all_options.push_back(reference);
  for (const Options& options : all_options) {
    const torch::Tensor initial = at::randn({stacked.rows, stacked.columns});
    Stepped stack{initial.clone(), make_segment_state(initial, all, options)};
    std::vector<Stepped> alone;
    for (const torch::Tensor& matrix : initial.chunk(kMatrices)) {
      alone.push_back({matrix.clone(), make_segment_state(matrix, one, options)});
    }
    for (int64_t t = 1; t <= 3; ++t) {
      const std::vector<torch::Tensor> gradients = {at::randn_like(initial),
                                                    at::randn_like(initial)};
      const double squares = step(stack, gradients, stacked, options, t, shape.rows);
      double expected_squares = 0;
      for (int64_t i = 0; i < kMatrices; ++i) {
        expected_squares +=
            step(alone[i], {gradients[0].chunk(kMatrices)[i], gradients[1].chunk(kMatrices)[i]},
                 shape, options, t);
      }
      EXPECT_NEAR(squares, expected_squares, 1e-12 * expected_squares);
    }
    std::vector<torch::Tensor> parameters, columns, rows;
    for (const Stepped& matrix : alone) {
      parameters.push_back(matrix.parameter);
      columns.push_back(matrix.state.exp_avg_sq.col);
      rows.push_back(matrix.state.exp_avg_sq.row);
    }
    ASSERT_TRUE(stack.parameter.equal(at::cat(parameters))) << describe(options);
    if (columns[0].defined()) {
      ASSERT_TRUE(stack.state.exp_avg_sq.col.equal(at::cat(columns)));
    }
    if (rows[0].defined()) {
      ASSERT_TRUE(stack.state.exp_avg_sq.row.equal(at::cat(rows)));
    }
  }
}

TEST(SegmentStep, BytesOfStateAreThoseOfTheFormula) {
  const RowRange matrix{0, 30, 30, 20, false};
  const torch::Tensor p = at::zeros({30, 20});
  const auto bytes = [&](const Options& options) {
    return state_bytes(make_segment_state(p, matrix, options));
  };
  EXPECT_EQ(bytes(preset("recommended", 1e-3)), 4 * 600 + 4 * (30 + 20));
  EXPECT_EQ(bytes(preset("compact", 1e-3)), 4 * (30 + 20));
  EXPECT_EQ(bytes(preset("lean", 1e-3)), 4 * 600 + 4 * 20);
  EXPECT_EQ(bytes(preset("elementwise", 1e-3)), 4 * 600 + 4 * 600);
  Options halved = preset("recommended", 1e-3);
  halved.momentum_dtype = MomentumDtype::bf16;
  EXPECT_EQ(bytes(halved), 2 * 600 + 4 * (30 + 20));
  halved.prepare_hessian = true;
  EXPECT_EQ(bytes(halved), 2 * 600 + 2 * 4 * (30 + 20));
  EXPECT_EQ(state_bytes(make_segment_state(p.to(at::kBFloat16), matrix, preset("compact", 1e-3))),
            4 * (30 + 20) + 4 * 600);
}

TEST(SegmentStep, ABfloat16ParameterIsTheRoundingOfItsMaster) {
  at::manual_seed(7);
  const Shape shape{9, 33};
  const RowRange range{0, 9, 9, 33, false};
  const torch::Tensor initial = at::randn({9, 33}).to(at::kBFloat16);
  for (const char* name : {"recommended", "lean"}) {
    Options options = preset(name, 1e-4);  // steps far below bfloat16's resolution
    options.use_rms = true;
    Stepped half{initial.clone(), make_segment_state(initial, range, options)};
    const torch::Tensor wide = initial.to(at::kFloat);
    Stepped full{wide.clone(), make_segment_state(wide, range, options)};
    for (int64_t t = 1; t <= 20; ++t) {
      const torch::Tensor g = at::randn({9, 33}) + 1;
      step(half, {g}, shape, options, t);
      step(full, {g}, shape, options, t);
    }
    EXPECT_TRUE(half.state.master.equal(full.parameter)) << name;
    EXPECT_TRUE(half.parameter.equal(full.parameter.to(at::kBFloat16))) << name;
  }
}

TEST(SegmentStep, AMasterFollowsWhatOthersWriteElementByElement) {
  at::manual_seed(8);
  const Shape shape{19, 37};
  const RowRange range{0, shape.rows, shape.rows, shape.columns, false};
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    for (const bool reference : {false, true}) {
      for (const char* name : {"recommended", "lean", "elementwise"}) {
        std::unique_ptr<ForceReference> forced;
        if (reference) forced = std::make_unique<ForceReference>();
        const Options options = preset(name, 1e-4);  // steps below the parameter's resolution
        const torch::Tensor initial = at::randn({shape.rows, shape.columns}).to(type);
        Stepped rounded{initial.clone(), make_segment_state(initial, range, options)};
        const torch::Tensor wide = initial.to(at::kFloat);
        Stepped full{wide.clone(), make_segment_state(wide, range, options)};
        for (int64_t t = 1; t <= 6; ++t) {
          const torch::Tensor g = at::randn({shape.rows, shape.columns});
          // Through .data(), which no version counter sees; the others keep what they have below the resolution.
          const torch::Tensor written = at::rand({shape.rows, shape.columns}) < 0.3;
          // Not a value that is there already: writing the same is not seen, and changes nothing that can be seen.
          const torch::Tensor values =
              (at::rand({shape.rows, shape.columns}) + 10.0 * static_cast<double>(t)).to(type);
          rounded.parameter.data().copy_(at::where(written, values, rounded.parameter));
          full.parameter.copy_(at::where(written, values.to(at::kFloat), full.parameter));
          step(rounded, {g}, shape, options, t);
          step(full, {g}, shape, options, t);
        }
        EXPECT_TRUE(rounded.state.master.equal(full.parameter)) << name << reference;
        EXPECT_TRUE(rounded.parameter.equal(full.parameter.to(type))) << name << reference;
      }
    }
  }
}

// A master half way between two bfloat16 numbers rounds to the even one; both are within half a unit of it, so it stays whichever
// of them the parameter is, and one that is a bit further away does not: the same rule in the pass and in the reference.
TEST(SegmentStep, AMasterThatIsHalfWayIsKeptByThePassAndTheReference) {
  const RowRange range{0, 8, 8, 4, false};
  const Options options = preset("recommended", 0);
  const torch::Tensor low =
      at::arange(32).view({8, 4}).add_(0x3f80).to(at::kShort).view(at::kBFloat16);
  const torch::Tensor high =
      at::arange(32).view({8, 4}).add_(0x3f81).to(at::kShort).view(at::kBFloat16);
  const torch::Tensor half_way = low.to(at::kFloat).view(at::kInt).add(0x8000).view(at::kFloat);
  const torch::Tensor further = low.to(at::kFloat).view(at::kInt).add(0x8001).view(at::kFloat);
  for (const bool reference : {false, true}) {
    std::unique_ptr<ForceReference> forced;
    if (reference) forced = std::make_unique<ForceReference>();
    const auto master_after = [&](const torch::Tensor& parameter, const torch::Tensor& master) {
      Stepped run{parameter.clone(), make_segment_state(parameter, range, options)};
      run.state.master.copy_(master);
      step(run, {at::zeros({8, 4})}, {8, 4}, options, 1);
      return run.state.master;
    };
    EXPECT_TRUE(master_after(low, half_way).equal(half_way)) << reference;
    EXPECT_TRUE(master_after(high, half_way).equal(half_way)) << reference;
    EXPECT_TRUE(master_after(low, further).equal(low.to(at::kFloat))) << reference;
  }
}

// A row of an embedding that had no gradient for t - 1 steps, beside rows that had one in each: how far it goes from there
// when nothing follows but silence, which momentum fills with what it still has to pay out.
double way_of_a_row_that_wakes_up(const Options& options, int64_t t, torch::ScalarType type) {
  const Shape shape{8, 24};
  const RowRange range{0, shape.rows, shape.rows, shape.columns, false};
  Stepped run{at::zeros({shape.rows, shape.columns}, type), {}};
  run.state = make_segment_state(run.parameter, range, options);
  const torch::Tensor usual = at::randn({shape.rows, shape.columns}, type) * 1e-3;
  usual[5].zero_();
  for (int64_t before = 1; before < 50; ++before) {
    step(run, {usual}, shape, options, before < 20 ? before : t - 50 + before);
  }
  torch::Tensor waking = usual.clone();
  waking[5].fill_(1e-3);
  const torch::Tensor asleep = run.parameter[5].clone();
  step(run, {waking}, shape, options, t);
  for (int64_t after = 1; after < 100; ++after) step(run, {usual}, shape, options, t + after);
  return (run.parameter[5] - asleep).abs().max().item<double>();
}

TEST(SegmentStep, ARowThatWakesUpLateMovesByABoundThatDoesNotGrow) {
  at::manual_seed(9);
  for (const bool reference : {false, true}) {
    std::unique_ptr<ForceReference> forced;
    if (reference) forced = std::make_unique<ForceReference>();
    for (const torch::ScalarType type : {at::kFloat, at::kDouble}) {
      for (const int64_t t : {10'000, 100'000}) {
        for (const char* name : {"recommended", "compact", "sm3"}) {
          Options options = preset(name, 1e-3);
          options.Lambda = 0;
          const double scale = options.scale_by_parameter_rms ? 0.5 : 1;  // of step()'s scalars
          // 1/sqrt(1 - 0.999) = 31.6, and 1/sqrt(1 - 0.99) = 10 for sm3.
          const double bound = std::string(name) == "sm3" ? 10.0 : 31.63;
          EXPECT_LE(way_of_a_row_that_wakes_up(options, t, type), 1e-3 * scale * bound)
              << name << " at " << t;
        }
        Options uncapped = preset("recommended", 1e-3);
        uncapped.Lambda = 0;
        uncapped.beta_cap = 1;
        const double unbounded = std::pow(static_cast<double>(t), 0.4);  // 39.8 and 100
        EXPECT_NEAR(way_of_a_row_that_wakes_up(uncapped, t, type), 1e-3 * unbounded,
                    1e-5 * unbounded);
      }
    }
  }
}

TEST(SegmentStep, AStateMadeForOtherOptionsIsRefused) {
  const Shape shape{3, 4};
  const RowRange range{0, 3, 3, 4, false};
  const torch::Tensor p = at::zeros({3, 4});
  const Options made = preset("recommended", 1e-3);
  Stepped run{p, make_segment_state(p, range, made)};
  Options changed = made;
  changed.momentum_beta = 0;
  EXPECT_THROW(step(run, {at::ones({3, 4})}, shape, changed, 1), ConfigError);
  EXPECT_THROW(step(run, {at::ones({3, 4})}, shape, preset("elementwise", 1e-3), 1), ConfigError);
  EXPECT_THROW(arithmetic_type(at::kLong), ConfigError);
}

}  // namespace
}  // namespace fusedbun
