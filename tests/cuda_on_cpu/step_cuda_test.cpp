// The kernels of the CUDA step, run on the CPU, against the fused CPU step: the same bits in everything that a step leaves.
#include "fusedbun/core/gpu/step_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"
#include "fusedbun/core/gpu/step_table_layout.h"
#include "fusedbun/tests/core/random_segment.h"

namespace fusedbun {
namespace {

const CudaStream kStream{static_cast<void*>(nullptr)};

template <class T>
T* data_or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// A matrix as the device has it, and the tables of its step.
template <class T>
struct TableMatrix {
  RandomMatrix<T> memory;
  std::vector<uint16_t> low_precision;
  std::vector<T> values;
  std::vector<double> totals;
  double squares = 0, new_squares = 0;
  device::Pending pending;
  device::StepTableLayout<T> layout;
  std::vector<std::byte> scratch;
  std::vector<device::Gradient> gradients;
  device::StepInputs inputs;
  std::vector<device::StepFactors<T>> factors;
  std::vector<int32_t> factors_of = {0};
  device::StepControl control;

  TableMatrix(const RandomMatrix<T>& start, const std::vector<int64_t>& boundaries)
      : memory(start), values(memory.moment.col.size()), totals(memory.moment.col.size()) {
    const Options& options = memory.options;
    device::MatrixEntry<T> matrix;
    matrix.col = data_or_null(memory.moment.col);
    if (options.accumulator != Accumulator::sm3) matrix.values = data_or_null(values);
    matrix.totals = data_or_null(totals);
    if (options.scale_by_parameter_rms) {
      matrix.squares = &squares;
      matrix.new_squares = &new_squares;
    }
    const int32_t number = layout.add_matrix(matrix);
    const int64_t columns = memory.range.columns;
    for (size_t i = 1; i < boundaries.size(); ++i) {
      const int64_t begin = boundaries[i - 1], at = begin * columns;
      RowRange range = memory.range;
      range.row_begin = begin;
      range.row_end = boundaries[i];
      if (range.rows() == 0) continue;
      const auto from = [&](std::vector<T>& elements, int64_t index) {
        return elements.empty() ? nullptr : elements.data() + index;
      };
      device::SegmentMemory<T> rows;
      rows.parameter = memory.parameter.data() + at;
      if (!memory.momentum.empty())
        rows.momentum = memory.momentum.data() + begin * memory.momentum_bytes_per_row();
      rows.full = from(memory.moment.full, at);
      rows.row = from(memory.moment.row, begin);
      layout.begin_group();  // they run one after the other, as buckets do
      layout.add_segment(number, range, rows, options, memory.range.elements(), i > 1);
      gradients.push_back(
          {memory.gradient.data() + at, sizeof(T) == 8 ? ElementType::f64 : ElementType::f32});
    }
    scratch.resize(layout.scratch_bytes());
    layout.set_scratch(scratch.data());
  }

  device::StepTable<T> table() {
    return {.matrices = layout.matrices.data(),
            .pending = &pending,
            .segments = layout.segments.data(),
            .tiles = layout.tiles.data(),
            .collect_tiles = layout.collect_tiles.data(),
            .matrix_count = static_cast<int32_t>(layout.matrices.size()),
            .tile_count = static_cast<int32_t>(layout.tiles.size()),
            .collect_count = static_cast<int32_t>(layout.collect_tiles.size()),
            .inputs = &inputs,
            .gradients = gradients.data(),
            .factors = factors.data(),
            .factors_of = factors_of.data(),
            .control = &control};
  }

  static device::StepTable<T> tiles_of(device::StepTable<T> all, const device::TileGroup& group) {
    all.tiles += group.first_tile;
    all.tile_count = group.tile_count;
    all.collect_tiles += group.first_collect;
    all.collect_count = group.collect_count;
    return all;
  }

  void step(int64_t t) {
    factors.clear();
    for (int64_t behind = 0; behind < device::kStepsUnderWay; ++behind) {
      const StepScalars scalars =
          step_scalars(memory.options, std::max<int64_t>(t - behind, 1), 0.5);
      factors.push_back(device::step_factors<T>(memory.range, scalars, memory.options));
    }
    control.divisor = memory.divisor;
    control.clip = memory.scale;
    std::fill(scratch.begin(), scratch.end(), std::byte{0xf7});
    const device::StepTable<T> all = table();
    cuda_on_cpu::absorb(all, true, kStream);
    cuda_on_cpu::prepare(all, kStream);
    for (const device::TileGroup& group : layout.groups) {
      cuda_on_cpu::begin(tiles_of(all, group), group.is_centred, kStream);
      cuda_on_cpu::collect(tiles_of(all, group), kStream);
    }
    if (!layout.groups[0].has_finish) return;
    cuda_on_cpu::absorb(all, true, kStream);
    cuda_on_cpu::prepare(all, kStream);
    for (const device::TileGroup& group : layout.groups)
      cuda_on_cpu::finish(tiles_of(all, group), group.is_centred, kStream);
  }
  void absorb() { cuda_on_cpu::absorb(table(), true, kStream); }
};

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if constexpr (std::is_floating_point_v<T>) {
      if (std::isnan(a[i]) && std::isnan(b[i]))
        continue;  // its sign and payload are the compiler's
    }
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return false;
  }
  return true;
}

template <class T>
std::string difference(const RandomMatrix<T>& want, const RandomMatrix<T>& have) {
  std::string text;
  if (!same_bits(want.parameter, have.parameter)) text += " parameter";
  if (!same_bits(want.momentum, have.momentum)) text += " momentum";
  if (!same_bits(want.moment.full, have.moment.full)) text += " full";
  if (!same_bits(want.moment.row, have.moment.row)) text += " row";
  if (!same_bits(want.moment.col, have.moment.col)) text += " col";
  return text;
}

struct Shape {
  int64_t rows;
  int64_t columns;
  bool is_vector = false;
};

std::string label(const Options& options, const Shape& shape) {
  return describe(options) + " on " + std::to_string(shape.rows) + "x" +
         std::to_string(shape.columns);
}

template <class T>
class CudaStep : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CudaStep, Types);

template <class T>
void expect_the_cpus_bits(const Options& options, const Shape& shape, std::mt19937_64& random,
                          bool with_nan) {
  RandomMatrix<T> cpu(options, shape.rows, shape.columns, shape.is_vector);
  for (T& p : cpu.parameter) p = std::normal_distribution<T>()(random);
  TableMatrix<T> gpu(cpu, {0, shape.rows});
  for (int64_t t = 1; t <= 3; ++t) {
    for (T& g : cpu.gradient) g = random_gradient<T>(random);
    if (with_nan && t == 2)
      cpu.gradient[random() % cpu.gradient.size()] = std::numeric_limits<T>::quiet_NaN();
    std::copy(cpu.gradient.begin(), cpu.gradient.end(), gpu.memory.gradient.begin());
    gpu.squares = 0.25 * static_cast<double>(cpu.parameter.size());  // its root mean square is 0.5
    cpu.step(t, {0, shape.rows}, {});
    gpu.step(t);
    gpu.absorb();
    ASSERT_EQ(difference(cpu, gpu.memory), "") << label(options, shape) << " in step " << t;
  }
}

TYPED_TEST(CudaStep, LeavesTheCpusBits) {
  std::mt19937_64 random(test_seed());
  cuda_on_cpu::set_order(random());
  for (const Shape& shape : {Shape{7, 1}, Shape{19, 15}, Shape{70, 48}, Shape{1500, 1, true}}) {
    for (const Options& options : fused_options()) {
      expect_the_cpus_bits<TypeParam>(options, shape, random, random() % 4 == 0);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  // Several bands, several blocks of columns; more of them than a block of threads adds up at once.
  for (const Shape& shape :
       {Shape{200, 260}, Shape{1, 37}, Shape{33, 2052}, Shape{3, 1041}, Shape{2, 8500}}) {
    for (const std::string& name : preset_names()) {
      Options options = preset(name, 1e-2);
      options.centralize = random() % 2 == 0;
      expect_the_cpus_bits<TypeParam>(options, shape, random, random() % 4 == 0);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Rows that are stepped by several segments, as buckets cut them, of one band and of several.
TYPED_TEST(CudaStep, SegmentsOfAMatrixAddUpAsOnTheCpu) {
  using T = TypeParam;
  std::mt19937_64 random(test_seed());
  for (const std::string& name : preset_names()) {
    for (const Shape& shape : {Shape{40, 70}, Shape{700, 65}}) {
      const std::vector<int64_t> boundaries = {0, 16, 16, shape.rows / 2, shape.rows};
      Options options = preset(name, 1e-2);
      options.centralize = !options.centralize;
      RandomMatrix<T> cpu(options, shape.rows, shape.columns, false);
      for (T& p : cpu.parameter) p = std::normal_distribution<T>()(random);
      TableMatrix<T> gpu(cpu, boundaries);
      for (int64_t t = 1; t <= 3; ++t) {
        for (T& g : cpu.gradient) g = random_gradient<T>(random);
        std::copy(cpu.gradient.begin(), cpu.gradient.end(), gpu.memory.gradient.begin());
        gpu.squares = 0.25 * static_cast<double>(cpu.parameter.size());
        cpu.step(t, boundaries, {});
        gpu.step(t);
        gpu.absorb();
        ASSERT_EQ(difference(cpu, gpu.memory), "") << label(options, shape) << " in step " << t;
      }
    }
  }
}

}  // namespace
}  // namespace fusedbun
