#include "fusedbun/dist/step/row_gather.h"

#include <ATen/ATen.h>

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

RowGather::RowGather(const plan::Bucket& bucket, comm::Communicator& communicator, at::Tensor rows)
    : bucket_(bucket), communicator_(communicator), rows_(std::move(rows)) {}

at::Tensor RowGather::segment_of(int rank, const plan::Segment& segment) const {
  return rows_.narrow(0, bucket_.offsets[rank] + segment.offset, segment.range.elements())
      .view({segment.range.rows(), segment.range.columns});
}

comm::Work RowGather::send(std::span<const ParameterMatrix> matrices) {
  if (communicator_.size() == 1) return {};
  const int rank = communicator_.rank();
  for (const plan::Segment& own : bucket_.segments[rank]) {
    segment_of(rank, own).copy_(matrices[own.parameter].rows(own.range));
  }
  comm::Counts counts = bucket_.counts;
  const comm::Buffer all = buffer_of(rows_);
  if (all.type == comm::DataType::u8) {
    for (int64_t& count : counts) count *= rows_.element_size();
  }
  const at::Tensor portion = rows_.narrow(0, bucket_.offsets[rank], bucket_.counts[rank]);
  return communicator_.all_gather(buffer_of(portion), all, counts);
}

void RowGather::receive(std::span<ParameterMatrix> matrices, const std::vector<bool>& used) const {
  for (int rank = 0; rank < communicator_.size(); ++rank) {
    if (rank == communicator_.rank()) continue;
    for (const plan::Segment& segment : bucket_.segments[rank]) {
      if (!used[segment.parameter]) continue;
      matrices[segment.parameter].rows(segment.range).copy_(segment_of(rank, segment));
    }
  }
}

}  // namespace fusedbun
