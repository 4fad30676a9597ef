#include "fusedbun/dist/step/flat_gradients.h"

#include <ATen/ops/isfinite.h>

#include "fusedbun/dist/step/gradient_copy.h"

namespace fusedbun {

FlatGradients::FlatGradients(const plan::Bucket& bucket, int rank, at::Tensor gradients)
    : GradientBucket(bucket, rank), gradients_(std::move(gradients)) {}

at::Tensor FlatGradients::segment_of(const at::Tensor& memory, int rank,
                                     const plan::Segment& segment) const {
  return memory.narrow(0, bucket_.offsets[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

at::Tensor FlatGradients::portion_of(const at::Tensor& memory, int rank) const {
  return memory.narrow(0, bucket_.offsets[rank], bucket_.counts[rank]);
}

bool FlatGradients::add_gradient(int parameter, const at::Tensor& gradient,
                                 at::Tensor& device_nonfinite) {
  const at::Tensor source = gradient.detach().to(gradient_type(bucket_)).contiguous();
  bool finite = true;
  for_each_segment(bucket_, parameter, [&](int rank, size_t i) {
    const plan::Segment& segment = bucket_.segments[rank][i];
    const at::Tensor elements = elements_of(source, segment.range);
    const at::Tensor copy = segment_of(gradients_, rank, segment).view({-1});
    if (source.is_cpu()) {
      finite &= copy_and_test(elements, copy);
    } else {
      copy.copy_(elements);
      device_nonfinite.add_(at::isfinite(elements.square()).logical_not().any());
    }
  });
  return finite;
}

void FlatGradients::add_zero_gradient(int parameter) {
  for_each_segment(bucket_, parameter, [&](int rank, size_t i) {
    segment_of(gradients_, rank, bucket_.segments[rank][i]).zero_();
  });
}

}  // namespace fusedbun
