#include "fusedbun/dist/step/gradient_bucket.h"

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/core/segment_step.h"

namespace fusedbun {

GradientBucket::GradientBucket(const plan::Bucket& bucket, int rank)
    : bucket_(bucket), rank_(rank) {
  for (const int parameter : bucket_.parameters) segments_of_[parameter];
  for (size_t r = 0; r < bucket_.segments.size(); ++r) {
    for (size_t i = 0; i < bucket_.segments[r].size(); ++i) {
      segments_of_[bucket_.segments[r][i].parameter].push_back({static_cast<int>(r), i});
    }
  }
}

size_t GradientBucket::index_of(const plan::Segment& own) const {
  const auto& segments = bucket_.segments[rank_];
  const auto it = std::ranges::find_if(segments, [&](const plan::Segment& segment) {
    return segment.parameter == own.parameter && segment.offset == own.offset;
  });
  FUSEDBUN_ASSERT(it != segments.end(), "the segment is this rank's");
  return static_cast<size_t>(it - segments.begin());
}

device::Gradient GradientBucket::gradient_on_device(const plan::Segment&) const {
  FUSEDBUN_ASSERT(false, "a bucket of the host was asked for gradients on a GPU");
}

at::ScalarType parameter_type(const plan::Bucket& bucket) {
  return scalar_type_of(bucket.type);
}

at::ScalarType sum_type(const plan::Bucket& bucket) {
  return arithmetic_type(parameter_type(bucket));
}

at::Tensor as_taken(const plan::Bucket& bucket, const at::Tensor& gradient) {
  return gradient.detach().to(parameter_type(bucket)).contiguous();
}

at::Tensor elements_of(const at::Tensor& flat, const RowRange& range) {
  return flat.narrow(0, range.row_begin * range.columns, range.elements());
}

}  // namespace fusedbun
