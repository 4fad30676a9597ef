#pragma once
// The parameters that tests of whole optimizers step on a device: shapes, types and memory of all kinds.
//
// Thread safety: values.
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fusedbun {

struct ParameterKind {
  std::vector<int64_t> shape;
  at::ScalarType type = at::kFloat;
  bool is_strided = false;  ///< a matrix that lies transposed

  /// `values` have the shape, in float64.
  at::Tensor made_of(const at::Tensor& values) const {
    const at::Tensor typed = values.to(type);
    return is_strided ? typed.t().contiguous().t() : typed;
  }
};

}  // namespace fusedbun
