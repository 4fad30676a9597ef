#pragma once
// A parameter seen as the contiguous n×m matrix whose rows are divided over the ranks.
//
// For a contiguous parameter it is a view, so writing rows writes the parameter. For any other it
// is a staging copy: `refresh` before a step reads the parameter, `write_back` after it writes it.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun {

class ParameterMatrix {
 public:
  ParameterMatrix(at::Tensor parameter, const plan::ParameterSpec& spec);

  void refresh();
  void write_back();
  /// [range.rows(), m], contiguous; shares memory with the matrix.
  at::Tensor rows(const RowRange& range) const;
  const at::Tensor& matrix() const { return matrix_; }

 private:
  at::Tensor parameter_;  ///< detached alias of the user's tensor
  at::Tensor matrix_;     ///< [n, m]
  bool staged_;
};

}  // namespace fusedbun
