#include "fusedbun/dist/step/flat_gradient_bucket.h"

#include <cstring>

#include "fusedbun/core/gradient_kernels.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun {

FlatGradientBucket::FlatGradientBucket(const plan::Bucket& bucket, int rank,
                                       std::vector<int64_t> begins, at::Tensor gradients)
    : GradientBucket(bucket, rank), begins_(std::move(begins)), gradients_(std::move(gradients)) {}

void* FlatGradientBucket::place_of(const at::Tensor& memory, int rank,
                                   const plan::Segment& segment) const {
  return static_cast<std::byte*>(memory.data_ptr()) +
         (begins_[rank] + segment.offset) * static_cast<int64_t>(memory.element_size());
}

at::Tensor FlatGradientBucket::segment_of(const at::Tensor& memory, int rank,
                                          const plan::Segment& segment) const {
  return memory.narrow(0, begins_[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

at::Tensor FlatGradientBucket::portion_of(const at::Tensor& memory, int rank) const {
  return memory.narrow(0, begins_[rank], bucket_.counts[rank]);
}

bool FlatGradientBucket::add_gradient(int parameter, const at::Tensor& gradient) {
  const at::Tensor taken = as_taken(bucket_, gradient);
  const auto* const start = static_cast<const std::byte*>(taken.const_data_ptr());
  const auto size = static_cast<int64_t>(taken.element_size());
  const ElementType from = element_type(taken.scalar_type());
  const ElementType to = element_type(gradients_.scalar_type());
  bool finite = true;
  for (const auto& [rank, index] : segments_of(parameter)) {
    const plan::Segment& segment = bucket_.segments[rank][index];
    const int64_t first = segment.range.row_begin * segment.range.columns;
    finite &= copy_and_test(from, start + first * size, to, place_of(gradients_, rank, segment),
                            segment.range.elements());
  }
  return finite;
}

void FlatGradientBucket::add_zero_gradient(int parameter) {
  for (const auto& [rank, index] : segments_of(parameter)) {
    const plan::Segment& segment = bucket_.segments[rank][index];
    std::memset(place_of(gradients_, rank, segment), 0,
                static_cast<size_t>(segment.range.elements()) * gradients_.element_size());
  }
}

}  // namespace fusedbun
