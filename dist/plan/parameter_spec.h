#pragma once
// What the planner knows of a parameter: name, shape, type, group. No tensor.
//
// Thread safety: values.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/element_type.h"
#include "fusedbun/core/row_range.h"

namespace fusedbun::plan {

/// Types a parameter may have. Its gradient is added up, and it is stepped, in float64 for f64 and
/// float32 for the rest.
using fusedbun::bytes_of;
using fusedbun::ElementType;
std::string_view name_of(ElementType type);
/// Bytes of one element of the arithmetic: 8 for f64, else 4.
int64_t arithmetic_bytes_of(ElementType type);

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;
  ElementType type = ElementType::f32;
  int group = 0;
  /// How it is seen as rows (core/row_range.h): that of its group's options.
  MatrixView matrix_view = MatrixView::leading;

  RowRange all_rows() const { return all_rows_of(shape, matrix_view); }
  /// Seen as n×m, stacked matrices one below the other: a vector's rows are its elements.
  bool is_vector() const { return shape.size() < 2; }
  int64_t rows() const { return all_rows().rows_total; }
  int64_t columns() const { return all_rows().columns; }
  int64_t elements() const { return all_rows().elements(); }
  /// Matrices of a stack (last_two with three or more dimensions), 0 for all else.
  int64_t stacked_matrices() const;

  bool operator==(const ParameterSpec&) const = default;
};

}  // namespace fusedbun::plan
