#include "fusedbun/dist/step/flat_gradient_bucket.h"

namespace fusedbun {

FlatGradientBucket::FlatGradientBucket(const plan::Bucket& bucket, int rank, DeviceApi& device,
                                       std::vector<int64_t> begins, at::Tensor gradients)
    : GradientBucket(bucket, rank),
      device_(device),
      begins_(std::move(begins)),
      gradients_(std::move(gradients)) {}

at::Tensor FlatGradientBucket::segment_of(const at::Tensor& memory, int rank,
                                          const plan::Segment& segment) const {
  return memory.narrow(0, begins_[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

at::Tensor FlatGradientBucket::portion_of(const at::Tensor& memory, int rank) const {
  return memory.narrow(0, begins_[rank], bucket_.counts[rank]);
}

bool FlatGradientBucket::add_gradient(int parameter, const at::Tensor& gradient,
                                      at::Tensor& device_nonfinite) {
  const at::Tensor taken = as_taken(bucket_, gradient);
  std::vector<DeviceCopy> pieces;
  for (const auto& [rank, index] : segments_of(parameter)) {
    const plan::Segment& segment = bucket_.segments[rank][index];
    pieces.push_back(
        {elements_of(taken, segment.range), segment_of(gradients_, rank, segment).view({-1})});
  }
  return device_.intake(taken, pieces, device_nonfinite);
}

void FlatGradientBucket::add_zero_gradient(int parameter) {
  std::vector<at::Tensor> pieces;
  for (const auto& [rank, index] : segments_of(parameter)) {
    pieces.push_back(segment_of(gradients_, rank, bucket_.segments[rank][index]));
  }
  device_.zero(pieces);
}

}  // namespace fusedbun
