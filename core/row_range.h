#pragma once
// Which rows of which matrix a step works on.
//
// A parameter of shape (d0, ..., dk), k >= 1, is the n×m matrix n = d0, m = d1·...·dk in row-major view. A 0-D or
// 1-D parameter is a vector: its row is one element, so n = its element count and m = 1. Rows are never cut.
//
// Thread safety: values.
#include <cstdint>

namespace fusedbun {

struct RowRange {
  int64_t row_begin = 0;   ///< first row, counted in the whole parameter
  int64_t row_end = 0;     ///< one past the last
  int64_t rows_total = 0;  ///< n of the whole parameter: what a mean over i divides by
  int64_t columns = 0;     ///< m
  bool is_vector =
      false;  ///< full second moment, never centralised, masked only with MaskScope::all

  int64_t rows() const { return row_end - row_begin; }
  int64_t elements() const { return rows() * columns; }
};

}  // namespace fusedbun
