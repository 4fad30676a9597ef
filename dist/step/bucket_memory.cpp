#include "fusedbun/dist/step/bucket_memory.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>

#include "fusedbun/core/error.h"
#include "fusedbun/core/step_cpu.h"
#include "fusedbun/dist/step/gradient_copy.h"

namespace fusedbun {
namespace {

bool copy_rows(const at::Tensor& source, at::Tensor destination) {
  if (destination.scalar_type() == at::kBFloat16) {
    return copy_and_test(source.const_data_ptr<float>(),
                         static_cast<uint16_t*>(destination.mutable_data_ptr()), source.numel());
  }
  if (source.scalar_type() == at::kDouble) {
    return copy_and_test(source.const_data_ptr<double>(), destination.mutable_data_ptr<double>(),
                         source.numel());
  }
  return copy_and_test(source.const_data_ptr<float>(), destination.mutable_data_ptr<float>(),
                       source.numel());
}

/// Calls visit(rank, segment) for every segment of the parameter.
template <class Visit>
void for_each_segment(const plan::Bucket& bucket, int parameter, Visit visit) {
  bool found = false;
  for (int rank = 0; rank < static_cast<int>(bucket.segments.size()); ++rank) {
    for (const plan::Segment& segment : bucket.segments[rank]) {
      if (segment.parameter != parameter) continue;
      visit(rank, segment);
      found = true;
    }
  }
  FUSEDBUN_ASSERT(found, "the parameter is in this bucket");
}

}  // namespace

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
  return std::sqrt(squares);
}

BucketMemory::BucketMemory(const plan::Bucket& bucket, int rank, at::Tensor gradients)
    : bucket_(bucket), rank_(rank), gradients_(std::move(gradients)) {}

at::Tensor BucketMemory::segment_of(const at::Tensor& memory, int rank,
                                    const plan::Segment& segment) const {
  return memory.narrow(0, bucket_.offsets[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

at::Tensor BucketMemory::portion_of(const at::Tensor& memory, int rank) const {
  return memory.narrow(0, bucket_.offsets[rank], bucket_.counts[rank]);
}

bool BucketMemory::take_gradient(int parameter, const at::Tensor& gradient,
                                 at::Tensor& device_nonfinite) {
  // bfloat16 on the wire is rounded by the copy, from the arithmetic's type.
  const at::Tensor source = gradient.detach().to(gradient_type(bucket_)).contiguous();
  bool finite = true;
  for_each_segment(bucket_, parameter, [&](int rank, const plan::Segment& segment) {
    const RowRange& range = segment.range;
    const at::Tensor rows =
        source.view({range.rows_total, range.columns}).narrow(0, range.row_begin, range.rows());
    at::Tensor destination = segment_of(gradients_, rank, segment);
    if (source.is_cpu()) {
      finite &= copy_rows(rows, destination);
    } else {
      destination.copy_(rows);
      device_nonfinite.add_(at::isfinite(rows.square()).logical_not().any());
    }
  });
  return finite;
}

void BucketMemory::zero_gradient(int parameter) {
  for_each_segment(bucket_, parameter, [&](int rank, const plan::Segment& segment) {
    segment_of(gradients_, rank, segment).zero_();
  });
}

}  // namespace fusedbun
