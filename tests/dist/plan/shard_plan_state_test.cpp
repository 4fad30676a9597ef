// Bytes of state and the layout of column statistics, against a count of every single entry.
#include <set>

#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::plan {
namespace {

constexpr int kModels = 1000;

/// Walks over every element a rank owns and notes which entries must exist for it.
int64_t counted_state_bytes(const ShardPlan& plan, int rank,
                            std::span<const Options> group_options) {
  int64_t bytes = 0;
  for (size_t p = 0; p < plan.parameters.size(); ++p) {
    const ParameterSpec& parameter = plan.parameters[p];
    const Options& options = group_options[parameter.group];
    std::set<int64_t> rows, columns, elements;
    for (const Bucket& bucket : plan.buckets) {
      for (const Segment& segment : bucket.segments[rank]) {
        if (segment.parameter != static_cast<int>(p)) continue;
        for (int64_t row = segment.range.row_begin; row < segment.range.row_end; ++row) {
          for (int64_t column = 0; column < segment.range.columns; ++column) {
            rows.insert(row);
            // Each matrix of a stack has columns of its own.
            const int64_t matrix_rows = segment.range.matrix_rows;
            const int64_t matrix = matrix_rows > 0 ? row / matrix_rows : 0;
            columns.insert(matrix * segment.range.columns + column);
            elements.insert(row * segment.range.columns + column);
          }
        }
      }
    }
    const int64_t arithmetic = parameter.type == ElementType::f64 ? 8 : 4;
    const bool everything = parameter.is_vector() || options.accumulator == Accumulator::full;
    int64_t second_moment = 0;
    for ([[maybe_unused]] int64_t element : elements) {
      if (options.momentum_beta > 0)
        bytes += options.momentum_dtype == MomentumDtype::bf16 ? 2 : arithmetic;
      const bool is_low = parameter.type == ElementType::bf16 || parameter.type == ElementType::f16;
      if (is_low && options.low_precision == LowPrecision::master) bytes += 4;
      if (is_low && options.low_precision == LowPrecision::remainder) bytes += 2;
      if (everything) second_moment += arithmetic;
    }
    if (!everything && options.accumulator != Accumulator::mean_col) {
      second_moment += arithmetic * static_cast<int64_t>(rows.size());
    }
    if (!everything) second_moment += arithmetic * static_cast<int64_t>(columns.size());
    bytes += second_moment;
    if (options.prepare_hessian) bytes += second_moment;
  }
  return bytes;
}

Options random_options(Random& random) {
  Options options;
  options.momentum_beta = chance(random, 0.3) ? 0 : 0.9;
  options.momentum_dtype = chance(random, 0.5) ? MomentumDtype::bf16 : MomentumDtype::master;
  options.accumulator = static_cast<Accumulator>(between(random, 0, 3));
  options.low_precision = static_cast<LowPrecision>(between(random, 0, 2));
  options.prepare_hessian = chance(random, 0.3);
  options.scale_by_parameter_rms = chance(random, 0.3);
  return options;
}

TEST(StateBytes, AreThoseOfEveryEntryCounted) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int model = 0; model < kModels && !testing::Test::HasFailure(); ++model) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " model " + std::to_string(model));
    const ShardPlan plan = make_plan(random_model(random, "p", 8), random_plan_options(random));
    const std::vector<Options> options = {random_options(random), random_options(random),
                                          random_options(random)};
    for (int rank = 0; rank < plan.options.world_size; ++rank) {
      EXPECT_EQ(state_bytes(plan, rank, options), counted_state_bytes(plan, rank, options));
    }
  }
}

TEST(StateBytes, OfOneMatrixAndOneVectorByHand) {
  // Two ranks with 8 of 16 rows of 10 columns, and 3 of 6 vector elements.
  const auto bytes = [](ElementType type, const Options& options) {
    const std::vector<ParameterSpec> parameters = {{"w", {16, 10}, type}, {"b", {6}, type}};
    return state_bytes(make_plan(parameters, {.world_size = 2}), 1, std::vector<Options>{options});
  };
  const Options recommended = preset("recommended", 1e-3);
  EXPECT_EQ(bytes(ElementType::f32, recommended), 4 * 83 + 4 * (8 + 10) + 4 * 3);
  EXPECT_EQ(bytes(ElementType::f64, recommended), 8 * 83 + 8 * (8 + 10) + 8 * 3);
  EXPECT_EQ(bytes(ElementType::bf16, recommended), 4 * 83 + 4 * (8 + 10) + 4 * 3 + 4 * 83);
  EXPECT_EQ(bytes(ElementType::f32, preset("compact", 0.1)), 4 * (8 + 10) + 4 * 3);
  EXPECT_EQ(bytes(ElementType::f32, preset("elementwise", 1e-3)), 4 * 83 + 4 * 83);
  EXPECT_EQ(bytes(ElementType::f32, preset("lean", 1e-3)), 4 * 83 + 4 * 10 + 4 * 3);
  Options half = recommended;
  half.momentum_dtype = MomentumDtype::bf16;
  half.prepare_hessian = true;
  EXPECT_EQ(bytes(ElementType::f32, half), 2 * 83 + 2 * (4 * (8 + 10) + 4 * 3));
}

TEST(StateBytes, OfAStackHaveRowsAndColumnsOfEachMatrix) {
  std::vector<ParameterSpec> parameters = {{"experts", {5, 8, 10}}};
  parameters[0].matrix_view = MatrixView::last_two;
  const ShardPlan plan = make_plan(parameters, {.world_size = 2});
  const std::vector<Options> options = {preset("recommended", 1e-3)};
  EXPECT_EQ(state_bytes(plan, 0, options), 4 * (3 * 80 + 3 * 8 + 3 * 10));
  EXPECT_EQ(state_bytes(plan, 1, options), 4 * (2 * 80 + 2 * 8 + 2 * 10));
  EXPECT_EQ(column_layout(plan, options).sum_offset, std::vector<int64_t>{-1});
}

/// Marks entries [offset, offset + count) of a message and fails if one is marked already.
void mark(std::vector<bool>& entries, int64_t offset, int64_t count) {
  for (int64_t i = offset; i < offset + count; ++i) {
    ASSERT_LT(i, static_cast<int64_t>(entries.size()));
    EXPECT_FALSE(entries[i]) << "two parameters share entry " << i;
    entries[i] = true;
  }
}

TEST(ColumnLayout, FillsTheMessagesWithoutGapOrOverlap) {
  const uint64_t seed = test_seed();
  Random random(seed);
  for (int model = 0; model < kModels && !testing::Test::HasFailure(); ++model) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " model " + std::to_string(model));
    const ShardPlan plan = make_plan(random_model(random, "p", 12), random_plan_options(random));
    const std::vector<Options> options = {random_options(random), random_options(random),
                                          random_options(random)};
    const ColumnLayout layout = column_layout(plan, options);
    std::vector<bool> sums(layout.sum_entries), maxima(layout.max_entries);
    for (size_t p = 0; p < plan.parameters.size(); ++p) {
      const ParameterSpec& parameter = plan.parameters[p];
      const Options& own = options[parameter.group];
      const bool travels = parameter.elements() > 0 && plan.slices[p] == SliceKind::row_sharded &&
                           own.accumulator != Accumulator::full;
      const bool as_maximum = own.accumulator == Accumulator::sm3;
      const int64_t count = parameter.columns() * (own.prepare_hessian ? 2 : 1);
      EXPECT_EQ(layout.sum_offset[p] >= 0, travels && !as_maximum);
      EXPECT_EQ(layout.max_offset[p] >= 0, travels && as_maximum);
      EXPECT_EQ(layout.square_offset[p] >= 0,
                parameter.elements() > 0 && own.scale_by_parameter_rms);
      if (layout.sum_offset[p] >= 0) mark(sums, layout.sum_offset[p], count);
      if (layout.max_offset[p] >= 0) mark(maxima, layout.max_offset[p], count);
      if (layout.square_offset[p] >= 0) mark(sums, layout.square_offset[p], 1);
    }
    EXPECT_EQ(std::count(sums.begin(), sums.end(), false), 0);
    EXPECT_EQ(std::count(maxima.begin(), maxima.end(), false), 0);
  }
}

TEST(ColumnLayout, PutsSquaresAfterAllColumnSums) {
  Options options;
  options.scale_by_parameter_rms = true;
  const std::vector<ParameterSpec> parameters = {{"a", {8, 3}}, {"b", {2}}, {"c", {8, 5}}};
  const ColumnLayout layout =
      column_layout(make_plan(parameters, {.world_size = 2}), std::vector<Options>{options});
  EXPECT_EQ(layout.sum_offset, (std::vector<int64_t>{0, -1, 3}));
  EXPECT_EQ(layout.square_offset, (std::vector<int64_t>{8, 9, 10}));
  EXPECT_EQ(layout.sum_entries, 11);
  EXPECT_EQ(layout.max_entries, 0);
}

}  // namespace
}  // namespace fusedbun::plan
