#include "fusedbun/dist/plan/state_boxes.h"

#include <functional>
#include <numeric>
#include <span>

namespace fusedbun::plan {
namespace {

int64_t product(std::span<const int64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

/// How a tensor is cut: a range counts along `cut`, the leading dimensions taken together; `whole` comes entire.
struct Dimensions {
  std::vector<int64_t> cut, whole;
};

Dimensions dimensions_of(const ParameterSpec& parameter, StateAxis axis) {
  const std::vector<int64_t>& shape = parameter.shape;
  // Rows of a stack are counted along all dimensions but the last; of all other parameters along the first.
  const bool is_stack = parameter.stacked_matrices() > 0;
  const size_t row_dimensions = is_stack ? shape.size() - 1 : std::min<size_t>(shape.size(), 1);
  const auto rows_end = shape.begin() + static_cast<std::ptrdiff_t>(row_dimensions);
  switch (axis) {
    case StateAxis::element:
      return {{shape.begin(), rows_end}, {rows_end, shape.end()}};
    case StateAxis::row:
      return {{shape.begin(), rows_end}, {}};
    case StateAxis::column:
      if (is_stack) return {{shape.begin(), rows_end - 1}, {shape.back()}};
      return {{}, {parameter.columns()}};
  }
  return {};
}

/// Indices [begin, end) of `cut` taken together, as boxes: the part of the first index that it begins in, the whole indices, the
/// part of the index that it ends in; each part again along the other dimensions.
void cut_into_boxes(std::span<const int64_t> cut, int64_t begin, int64_t end,
                    std::vector<int64_t>& fixed, std::vector<Box>& boxes) {
  if (begin == end) return;
  const int64_t inner = cut.empty() ? 1 : product(cut.subspan(1));
  const auto add_whole = [&](int64_t first, int64_t last) {
    if (first == last) return;
    Box& box = boxes.emplace_back();
    box.offsets = fixed;
    box.shape.assign(fixed.size(), 1);
    if (cut.empty()) return;
    box.offsets.push_back(first);
    box.shape.push_back(last - first);
    for (const int64_t size : cut.subspan(1)) {
      box.offsets.push_back(0);
      box.shape.push_back(size);
    }
  };
  const auto add_part = [&](int64_t index, int64_t first, int64_t last) {
    fixed.push_back(index);
    cut_into_boxes(cut.subspan(1), first, last, fixed, boxes);
    fixed.pop_back();
  };
  if (begin % inner == 0 && end % inner == 0) return add_whole(begin / inner, end / inner);
  const int64_t first = begin / inner, last = end / inner;
  if (first == last) return add_part(first, begin % inner, end % inner);
  if (begin % inner != 0) add_part(first, begin % inner, inner);
  add_whole((begin + inner - 1) / inner, last);
  if (end % inner != 0) add_part(last, 0, end % inner);
}

}  // namespace

std::vector<int64_t> state_shape(const ParameterSpec& parameter, StateAxis axis) {
  Dimensions dimensions = dimensions_of(parameter, axis);
  dimensions.cut.insert(dimensions.cut.end(), dimensions.whole.begin(), dimensions.whole.end());
  return dimensions.cut;
}

std::vector<Box> boxes_of(const ParameterSpec& parameter, const RowRange& range, StateAxis axis) {
  const Dimensions dimensions = dimensions_of(parameter, axis);
  int64_t begin = range.row_begin, end = range.row_end;
  if (axis == StateAxis::column) {
    const int64_t rows = range.rows_per_matrix();
    begin = range.matrix_rows > 0 ? begin / rows : 0;
    end = range.matrix_rows > 0 ? end / rows : 1;
  }
  std::vector<Box> boxes;
  std::vector<int64_t> fixed;
  cut_into_boxes(dimensions.cut, begin, end, fixed, boxes);
  int64_t before = 0;
  for (Box& box : boxes) {
    box.begin = before;
    for (const int64_t size : dimensions.whole) {
      box.offsets.push_back(0);
      box.shape.push_back(size);
    }
    box.entries = product(box.shape);
    before += box.entries;
  }
  return boxes;
}

}  // namespace fusedbun::plan
