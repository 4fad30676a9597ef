#include "fusedbun/dist/step/gradient_bucket.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/core/step_cpu.h"

namespace fusedbun {

at::ScalarType parameter_type(const plan::Bucket& bucket) {
  switch (bucket.type) {
    case plan::ElementType::f32:
      return at::kFloat;
    case plan::ElementType::f64:
      return at::kDouble;
    case plan::ElementType::bf16:
      return at::kBFloat16;
    case plan::ElementType::f16:
      return at::kHalf;
  }
  FUSEDBUN_ASSERT(false, "unknown element type");
}

at::ScalarType gradient_type(const plan::Bucket& bucket) {
  return bucket.type == plan::ElementType::f64 ? at::kDouble : at::kFloat;
}

at::Tensor elements_of(const at::Tensor& whole, const RowRange& range) {
  return whole.view({-1}).narrow(0, range.row_begin * range.columns, range.elements());
}

double add_up(const std::vector<at::Tensor>& parts, const at::Tensor& sum) {
  constexpr int64_t kPiece = 1 << 14;
  const at::Tensor buffer = at::empty({kPiece}, sum.options());
  double squares = 0;
  for (int64_t begin = 0; begin < sum.numel(); begin += kPiece) {
    const int64_t count = std::min(kPiece, sum.numel() - begin);
    const at::Tensor piece = buffer.narrow(0, 0, count);
    piece.copy_(parts.front().narrow(0, begin, count));
    for (size_t i = 1; i < parts.size(); ++i) piece.add_(parts[i].narrow(0, begin, count));
    squares += sum.scalar_type() == at::kDouble
                   ? sum_of_squares(piece.const_data_ptr<double>(), count)
                   : sum_of_squares(piece.const_data_ptr<float>(), count);
    sum.narrow(0, begin, count).copy_(piece);
  }
  return squares;
}

}  // namespace fusedbun
