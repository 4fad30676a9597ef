#include "fusedbun/dist/step/parameter_matrix.h"

#include <ATen/core/Tensor.h>

namespace fusedbun {

ParameterMatrix::ParameterMatrix(at::Tensor parameter, const plan::ParameterSpec& spec)
    : parameter_(parameter.detach()), staged_(!parameter.is_contiguous()) {
  matrix_ = parameter_.reshape({spec.rows(), spec.columns()});
  if (staged_) matrix_ = matrix_.clone(at::MemoryFormat::Contiguous);
}

void ParameterMatrix::refresh() {
  if (staged_) matrix_.copy_(parameter_.reshape(matrix_.sizes()));
}

void ParameterMatrix::write_back() {
  if (staged_) parameter_.copy_(matrix_.view(parameter_.sizes()));
}

at::Tensor ParameterMatrix::rows(const RowRange& range) const {
  return matrix_.narrow(0, range.row_begin, range.rows());
}

}  // namespace fusedbun
