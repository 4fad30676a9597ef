#pragma once
// Which rows of which matrix a step works on.
//
// A parameter of shape (d0, ..., dk), k >= 1, is the n×m matrix n = d0, m = d1·...·dk in row-major view. With matrix_view =
// last_two and k >= 2 it is d0·...·d(k-2) matrices of d(k-1) rows and dk columns, one below the other; such a matrix is never
// cut either. A 0-D or 1-D parameter is a vector: its row is one element, so n = its element count and m = 1. Rows are never
// cut.
//
// Thread safety: values.
#include <cstdint>
#include <span>

#include "fusedbun/core/options.h"

namespace fusedbun {

struct RowRange {
  int64_t row_begin = 0;   ///< first row, counted in the whole parameter
  int64_t row_end = 0;     ///< one past the last
  int64_t rows_total = 0;  ///< n of the whole parameter, all its matrices together
  int64_t columns = 0;     ///< m
  bool is_vector =
      false;  ///< full second moment, never centralised, masked only with MaskScope::all
  /// Rows of one matrix, where the parameter is a stack of them; 0: all rows_total are one matrix.
  int64_t matrix_rows = 0;

  /// n of one matrix: what a mean over i divides by.
  int64_t rows_per_matrix() const { return matrix_rows > 0 ? matrix_rows : rows_total; }
  /// Matrices that have rows here: 1, or as many as are stacked.
  int64_t matrices() const { return matrix_rows > 0 ? rows() / matrix_rows : 1; }
  int64_t rows() const { return row_end - row_begin; }
  int64_t elements() const { return rows() * columns; }
};

/// All rows of a parameter of shape `shape`.
inline RowRange all_rows_of(std::span<const int64_t> shape, MatrixView view) {
  int64_t columns = 1;
  const bool is_stack = view == MatrixView::last_two && shape.size() > 2;
  for (size_t d = is_stack ? shape.size() - 1 : 1; d < shape.size(); ++d) columns *= shape[d];
  int64_t rows = shape.empty() ? 1 : shape[0];
  if (is_stack) {
    for (size_t d = 1; d + 1 < shape.size(); ++d) rows *= shape[d];
  }
  return {.row_begin = 0,
          .row_end = rows,
          .rows_total = rows,
          .columns = columns,
          .is_vector = shape.size() < 2,
          .matrix_rows = is_stack ? shape[shape.size() - 2] : 0};
}

}  // namespace fusedbun
