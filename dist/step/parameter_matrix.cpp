#include "fusedbun/dist/step/parameter_matrix.h"

#include <torch/csrc/autograd/variable.h>

namespace fusedbun {

ParameterMatrix::ParameterMatrix(at::Tensor parameter, const plan::ParameterSpec& spec)
    : parameter_(std::move(parameter)),
      rows_(spec.rows()),
      columns_(spec.columns()),
      type_(parameter_.scalar_type()),
      shape_(parameter_.sizes().vec()),
      device_(parameter_.device()) {
  refresh();
  remember();
}

std::optional<std::string> ParameterMatrix::why_unusable() const {
  const auto text = [](const auto&... parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
  };
  if (parameter_.scalar_type() != type_) {
    return text("was ", c10::toString(type_), " when the optimizer was made and is ",
                c10::toString(parameter_.scalar_type()), " now");
  }
  if (parameter_.sizes() != at::IntArrayRef(shape_)) {
    return text("had the shape ", at::IntArrayRef(shape_), " when the optimizer was made and has ",
                parameter_.sizes(), " now");
  }
  if (parameter_.device() != device_) {
    return text("was on ", device_, " when the optimizer was made and is on ", parameter_.device(),
                " now");
  }
  if (parameter_.layout() != at::kStrided) return text("is not a dense tensor any more");
  return std::nullopt;
}

void ParameterMatrix::refresh() {
  const void* const memory = parameter_.const_data_ptr();
  // A tensor without elements has no memory but still a matrix.
  if (!matrix_.defined() || memory != bound_ || parameter_.is_contiguous() == staged_) {
    bound_ = memory;
    staged_ = !parameter_.is_contiguous();
    matrix_ = parameter_.detach().reshape({rows_, columns_});
    if (staged_) matrix_ = matrix_.clone(at::MemoryFormat::Contiguous);
  } else if (staged_) {
    matrix_.copy_(parameter_.detach().reshape({rows_, columns_}));
  }
}

void ParameterMatrix::write_back() {
  if (staged_) parameter_.detach().copy_(matrix_.view(shape_));
}

void ParameterMatrix::bump_version() {
  torch::autograd::impl::bump_version(parameter_);
}

void ParameterMatrix::copy_into_replica(const RowRange& range) {
  const at::Tensor replica = replica_.view({rows_, columns_});
  const auto rows = [&](const at::Tensor& matrix) {
    return matrix.narrow(0, range.row_begin, range.rows());
  };
  rows(replica).copy_(rows(parameter_.detach().reshape({rows_, columns_})));
}

void ParameterMatrix::return_to_replica() {
  parameter_.set_data(replica_);
  refresh();
}

at::Tensor ParameterMatrix::rows(const RowRange& range) const {
  return matrix_.narrow(0, range.row_begin, range.rows());
}

}  // namespace fusedbun
