#include "fusedbun/dist/step/gathered_bucket.h"

#include <ATen/ops/zeros.h>

namespace fusedbun {

comm::Buffer buffer_of(const at::Tensor& memory) {
  if (memory.scalar_type() == at::kFloat) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f32};
  }
  if (memory.scalar_type() == at::kDouble) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f64};
  }
  return {memory.data_ptr(), static_cast<int64_t>(memory.nbytes()), comm::DataType::u8};
}

comm::Counts counts_of(const at::Tensor& memory, comm::Counts elements) {
  if (buffer_of(memory).type != comm::DataType::u8) return elements;
  for (int64_t& count : elements) count *= memory.element_size();
  return elements;
}

GatheredBucket::GatheredBucket(const plan::Bucket& bucket, comm::Communicator& communicator,
                               at::Tensor gradients)
    : BucketMemory(bucket, communicator.rank(), std::move(gradients)),
      communicator_(communicator),
      // A portion's gradients are used up by the step before new rows are written in their place.
      rows_(parameter_type(bucket) == gradients_.scalar_type()
                ? gradients_
                : at::zeros({bucket.elements()},
                            gradients_.options().dtype(parameter_type(bucket)))) {}

comm::Work GatheredBucket::send_rows(std::span<const ParameterMatrix> matrices, uint32_t) {
  if (communicator_.size() == 1) return {};
  for (const plan::Segment& own : bucket_.segments[rank_]) {
    segment_of(rows_, rank_, own).copy_(matrices[own.parameter].rows(own.range));
  }
  return communicator_.all_gather(buffer_of(portion_of(rows_, rank_)), buffer_of(rows_),
                                  counts_of(rows_, bucket_.counts));
}

void GatheredBucket::receive_rows(std::span<ParameterMatrix> matrices,
                                  const std::vector<bool>& used) {
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    if (rank == rank_) continue;
    for (const plan::Segment& segment : bucket_.segments[rank]) {
      if (!used[segment.parameter]) continue;
      matrices[segment.parameter].rows(segment.range).copy_(segment_of(rows_, rank, segment));
    }
  }
}

}  // namespace fusedbun
