// Boxes against the place of each entry, counted one by one.
#include "fusedbun/dist/plan/state_boxes.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>

namespace fusedbun::plan {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

/// The entries of a box in the whole tensor, numbered row-major, in the order of the box's memory.
std::vector<int64_t> entries_of(const Box& box, const std::vector<int64_t>& whole) {
  std::vector<int64_t> entries;
  for (int64_t i = 0; i < product(box.shape); ++i) {
    int64_t rest = i, entry = 0, stride = 1;
    for (size_t d = whole.size(); d-- > 0;) {
      const int64_t index = rest % box.shape[d];
      rest /= box.shape[d];
      EXPECT_LE(box.offsets[d] + box.shape[d], whole[d]);
      entry += (box.offsets[d] + index) * stride;
      stride *= whole[d];
    }
    entries.push_back(entry);
  }
  return entries;
}

std::string shape_of(const ParameterSpec& parameter) {
  std::string line;
  for (const int64_t size : parameter.shape) line += std::to_string(size) + " ";
  return line;
}

void expect_covers(const ParameterSpec& parameter, const RowRange& range, StateAxis axis,
                   int64_t first, int64_t last) {
  std::vector<int64_t> entries, expected(static_cast<size_t>(last - first));
  std::iota(expected.begin(), expected.end(), first);
  for (const Box& box : boxes_of(parameter, range, axis)) {
    EXPECT_EQ(box.begin, std::ssize(entries));
    const std::vector<int64_t> of_box = entries_of(box, state_shape(parameter, axis));
    EXPECT_EQ(box.entries, std::ssize(of_box));
    entries.insert(entries.end(), of_box.begin(), of_box.end());
  }
  EXPECT_EQ(entries, expected) << shape_of(parameter) << " rows " << range.row_begin << " to "
                               << range.row_end;
}

RowRange rows(const ParameterSpec& parameter, int64_t begin, int64_t end) {
  RowRange range = parameter.all_rows();
  range.row_begin = begin;
  range.row_end = end;
  return range;
}

TEST(StateBoxes, AMatrixIsCutAlongItsRows) {
  const ParameterSpec matrix{.name = "w", .shape = {6, 2, 5}};
  EXPECT_EQ(state_shape(matrix, StateAxis::element), (std::vector<int64_t>{6, 2, 5}));
  EXPECT_EQ(state_shape(matrix, StateAxis::row), (std::vector<int64_t>{6}));
  EXPECT_EQ(state_shape(matrix, StateAxis::column), (std::vector<int64_t>{10}));
  const auto boxes = boxes_of(matrix, rows(matrix, 2, 5), StateAxis::element);
  ASSERT_EQ(boxes.size(), 1U);
  EXPECT_EQ(boxes[0].offsets, (std::vector<int64_t>{2, 0, 0}));
  EXPECT_EQ(boxes[0].shape, (std::vector<int64_t>{3, 2, 5}));
  const auto columns = boxes_of(matrix, rows(matrix, 2, 5), StateAxis::column);
  ASSERT_EQ(columns.size(), 1U);
  EXPECT_EQ(columns[0].shape, (std::vector<int64_t>{10}));
}

TEST(StateBoxes, AScalarIsOneBoxWithoutDimensions) {
  const ParameterSpec scalar{.name = "s", .shape = {}};
  EXPECT_TRUE(state_shape(scalar, StateAxis::element).empty());
  const auto boxes = boxes_of(scalar, scalar.all_rows(), StateAxis::element);
  ASSERT_EQ(boxes.size(), 1U);
  EXPECT_TRUE(boxes[0].shape.empty());
  EXPECT_EQ(boxes[0].entries, 1);
}

TEST(StateBoxes, ARangeOfStackedMatricesMayBeSeveralBoxes) {
  const ParameterSpec stack{
      .name = "experts", .shape = {3, 4, 5, 2}, .matrix_view = MatrixView::last_two};
  EXPECT_EQ(state_shape(stack, StateAxis::row), (std::vector<int64_t>{3, 4, 5}));
  EXPECT_EQ(state_shape(stack, StateAxis::column), (std::vector<int64_t>{3, 4, 2}));
  // Matrices 2 to 9 of 12: the rest of layer 0, layer 1, one of layer 2.
  const auto boxes = boxes_of(stack, rows(stack, 2 * 5, 9 * 5), StateAxis::element);
  ASSERT_EQ(boxes.size(), 3U);
  EXPECT_EQ(boxes[0].offsets, (std::vector<int64_t>{0, 2, 0, 0}));
  EXPECT_EQ(boxes[0].shape, (std::vector<int64_t>{1, 2, 5, 2}));
  EXPECT_EQ(boxes[1].offsets, (std::vector<int64_t>{1, 0, 0, 0}));
  EXPECT_EQ(boxes[1].shape, (std::vector<int64_t>{1, 4, 5, 2}));
  EXPECT_EQ(boxes[2].offsets, (std::vector<int64_t>{2, 0, 0, 0}));
  EXPECT_EQ(boxes[2].shape, (std::vector<int64_t>{1, 1, 5, 2}));
}

TEST(StateBoxes, AnyRangeIsAllItsEntriesInOrder) {
  const char* given = std::getenv("FUSEDBUN_TEST_SEED");
  const auto seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::printf("FUSEDBUN_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 random(seed);
  const auto up_to = [&](int64_t last) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(last + 1));
  };
  for (int i = 0; i < 2000; ++i) {
    ParameterSpec parameter;
    const int64_t dimensions = up_to(5);
    for (int64_t d = 0; d < dimensions; ++d) parameter.shape.push_back(1 + up_to(3));
    parameter.matrix_view = up_to(1) != 0 ? MatrixView::last_two : MatrixView::leading;
    const RowRange all = parameter.all_rows();
    const int64_t unit = all.matrix_rows > 0 ? all.matrix_rows : 1;
    const int64_t units = all.rows_total / unit;
    const int64_t begin = up_to(units - 1), end = begin + 1 + up_to(units - begin - 1);
    const RowRange range = rows(parameter, begin * unit, end * unit);
    expect_covers(parameter, range, StateAxis::element, range.row_begin * range.columns,
                  range.row_end * range.columns);
    expect_covers(parameter, range, StateAxis::row, range.row_begin, range.row_end);
    const bool is_stack = all.matrix_rows > 0;
    expect_covers(parameter, range, StateAxis::column, is_stack ? begin * range.columns : 0,
                  is_stack ? end * range.columns : range.columns);
  }
}

}  // namespace
}  // namespace fusedbun::plan
