// What the fused CPU step promises about bits: the same for every instruction set, and for a row whatever rows are
// beside it. That its numbers are right is shown by golden_test and segment_step_test.
#include "fusedbun/core/step_cpu.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/tests/core/random_segment.h"

namespace fusedbun {
namespace {

struct Shape {
  int64_t rows;
  int64_t columns;
  bool is_vector = false;
};
// One column, one row, rows that end within, at and after 16 columns and within, at and after a block of 1024; more
// rows than a group of 16.
const Shape kShapes[] = {{1, 1},  {5, 1},    {1, 37},    {19, 15},     {17, 16},
                         {3, 33}, {2, 1024}, {17, 1041}, {1, 1, true}, {53, 1, true}};
// Rows longer than a block of column statistics: they go in groups.
constexpr Shape kLongRows = {17, 16401};

struct Case {
  Shape shape;
  Options options;
};
std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Shape& shape : kShapes) {
    for (const Options& options : all_fused_options()) all.push_back({shape, options});
  }
  for (const std::string& name : preset_names()) all.push_back({kLongRows, preset(name, 1e-2)});
  return all;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Parameters and every state tensor.
template <class T>
bool same_bits(const RandomMatrix<T>& a, const RandomMatrix<T>& b) {
  const auto same_memory = [](const auto& x, const auto& y) {
    return same_bits(x.full, y.full) && same_bits(x.row, y.row) && same_bits(x.col, y.col);
  };
  return same_bits(a.parameter, b.parameter) && same_bits(a.momentum, b.momentum) &&
         same_memory(a.moment, b.moment) && same_memory(a.hessian, b.hessian);
}

std::string label(const Options& options, const Shape& shape) {
  return describe(options) + " on " + std::to_string(shape.rows) + "x" +
         std::to_string(shape.columns);
}

template <class T>
class StepCpu : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(StepCpu, Types);

TYPED_TEST(StepCpu, EveryInstructionSetGivesTheSameBits) {
  using T = TypeParam;
  if (best_instruction_set() == InstructionSet::baseline)
    GTEST_SKIP() << "this machine has one instruction set only";
  const uint64_t seed = test_seed();
  for (const auto& [shape, options] : cases()) {
    std::vector<RandomMatrix<T>> runs;
    for (auto set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512}) {
      if (!is_supported(set)) continue;
      std::mt19937_64 random(seed);
      RandomMatrix<T>& run = runs.emplace_back(options, shape.rows, shape.columns, shape.is_vector);
      for (T& p : run.parameter) p = std::normal_distribution<T>()(random);
      for (int64_t t = 1; t <= 2; ++t) {
        for (T& g : run.gradient) g = random_gradient<T>(random);
        run.step(t, {0, shape.rows}, {.set = set});
      }
    }
    for (size_t i = 1; i < runs.size(); ++i) {
      const bool same = same_bits(runs[0], runs[i]);
      ASSERT_TRUE(same) << label(options, shape) << ", instruction set " << i;
    }
  }
}

TYPED_TEST(StepCpu, ARowsBitsDoNotDependOnTheOtherRowsOfTheSegment) {
  using T = TypeParam;
  std::mt19937_64 random(test_seed());
  for (const auto& [shape, options] : cases()) {
    RandomMatrix<T> whole(options, shape.rows, shape.columns, shape.is_vector);
    for (T& p : whole.parameter) p = std::normal_distribution<T>()(random);
    RandomMatrix<T> parts = whole;
    std::vector<int64_t> boundaries = {0, shape.rows};
    for (int i = 0; i < 3; ++i)
      boundaries.push_back(std::uniform_int_distribution<int64_t>(0, shape.rows)(random));
    std::sort(boundaries.begin(), boundaries.end());
    for (int64_t t = 1; t <= 2; ++t) {
      for (T& g : whole.gradient) g = random_gradient<T>(random);
      parts.gradient = whole.gradient;
      whole.step(t, {0, shape.rows}, {});
      parts.step(t, boundaries, {});
    }
    // Column sums are added up row after row here too, so even the means agree to the bit.
    const bool same = same_bits(whole, parts);
    ASSERT_TRUE(same) << label(options, shape);
  }
}

// Bands last to first, each on a thread of its own.
void on_many_threads(int64_t count, const std::function<void(int64_t)>& task) {
  std::vector<std::thread> threads;
  for (int64_t i = count - 1; i >= 0; --i) threads.emplace_back(task, i);
  for (std::thread& thread : threads) thread.join();
}

TYPED_TEST(StepCpu, TheNumberOfThreadsDoesNotChangeABit) {
  using T = TypeParam;
  std::mt19937_64 random(test_seed());
  // Several bands of rows, the last one short; a single row and a vector that are cut along their columns.
  for (const Shape& shape : {Shape{1333, 417}, Shape{1, 600000}, Shape{600011, 1, true}}) {
    std::vector<Options> all;
    for (const std::string& name : preset_names()) {
      all.push_back(preset(name, 1e-2));
      if (name == "lean" || name == "compact") continue;
      all.push_back(preset(name, 1e-2));
      all.back().prepare_hessian = true;
    }
    for (const Options& options : all) {
      RandomMatrix<T> alone(options, shape.rows, shape.columns, shape.is_vector);
      for (T& p : alone.parameter) p = std::normal_distribution<T>()(random);
      RandomMatrix<T> together = alone;
      for (int64_t t = 1; t <= 2; ++t) {
        for (T& g : alone.gradient) g = random_gradient<T>(random);
        together.gradient = alone.gradient;
        alone.step(t, {0, shape.rows}, {});
        together.step(t, {0, shape.rows}, {.parallel_for = on_many_threads});
      }
      const bool same = same_bits(alone, together);
      ASSERT_TRUE(same) << label(alone.options, shape);
    }
  }
}

TYPED_TEST(StepCpu, ColumnMaximaKeepNanWithoutItsSign) {
  using T = TypeParam;
  Options options = preset("sm3", 1e-2);
  options.centralize = false;
  RandomMatrix<T> matrix(options, 3, 20, false);
  std::fill(matrix.gradient.begin(), matrix.gradient.end(), T{1});
  matrix.gradient[20 + 7] = -std::numeric_limits<T>::infinity();  // next step: inf
  matrix.step(1, {0, 3}, {});
  EXPECT_TRUE(std::isinf(matrix.moment.column_maxima[7]));
  options.mask = Mask::off;  // else a NaN is held
  matrix.options = options;
  matrix.gradient[20 + 7] = -std::numeric_limits<T>::quiet_NaN();
  matrix.step(2, {0, 3}, {});
  EXPECT_TRUE(std::isnan(matrix.moment.column_maxima[7]));
  EXPECT_FALSE(std::signbit(matrix.moment.column_maxima[7]));
  EXPECT_TRUE(std::isnan(matrix.moment.row[1]));
  EXPECT_FALSE(std::isnan(matrix.moment.row[0]));
}

TYPED_TEST(StepCpu, DividingByAPowerOfTwoIsTheAverageExactly) {
  using T = TypeParam;
  std::mt19937_64 random(test_seed());
  RandomMatrix<T> summed(preset("elementwise", 1e-2), 5, 37, false);
  for (T& g : summed.gradient) g = random_gradient<T>(random);
  RandomMatrix<T> averaged = summed;
  for (T& g : averaged.gradient) g = g / 4 * T{0.75};
  summed.divisor = 4;
  averaged.divisor = averaged.scale = 1;
  cpu_begin(summed.rows(/*begins=*/true, 0, 5, 1));
  cpu_begin(averaged.rows(/*begins=*/true, 0, 5, 1));
  EXPECT_TRUE(same_bits(summed.parameter, averaged.parameter));
  EXPECT_TRUE(same_bits(summed.moment.full, averaged.moment.full));
}

TYPED_TEST(StepCpu, TheUpdateLeavesTheNewParametersSumOfSquares) {
  using T = TypeParam;
  std::mt19937_64 random(test_seed());
  for (const char* name : {"compact", "lean", "elementwise"}) {
    RandomMatrix<T> matrix(preset(name, 1e-2), 519, 1041, false);
    for (T& p : matrix.parameter) p = std::normal_distribution<T>()(random);
    for (T& g : matrix.gradient) g = random_gradient<T>(random);
    double sum = -1;
    const bool updates_in_finish = matrix.options.denominator == Denominator::global;
    cpu_begin(matrix.rows(/*begins=*/true, 0, 519, 1), updates_in_finish ? nullptr : &sum);
    if (updates_in_finish) cpu_finish(matrix.rows(/*begins=*/false, 0, 519, 1), &sum);
    double expected = 0;
    for (T p : matrix.parameter) expected += static_cast<double>(p) * static_cast<double>(p);
    EXPECT_NEAR(sum, expected, 1e-12 * expected) << name;  // the same terms in another order
    // What measures the parameters adds up in the same order.
    EXPECT_EQ(sum_of_squares(matrix.parameter.data(), matrix.range.elements(), 1041), sum);
  }
}

}  // namespace
}  // namespace fusedbun
