// A bucket that travels by reduce-scatter and all-gather, gradients and rows in the same memory.
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include "fusedbun/dist/step/flat_gradients.h"

namespace fusedbun {
namespace {

/// The tensor's memory as a communicator takes it; types that it does not add up are bytes.
comm::Buffer buffer_of(const at::Tensor& memory) {
  if (memory.scalar_type() == at::kFloat) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f32};
  }
  if (memory.scalar_type() == at::kDouble) {
    return {memory.data_ptr(), memory.numel(), comm::DataType::f64};
  }
  return {memory.data_ptr(), static_cast<int64_t>(memory.nbytes()), comm::DataType::u8};
}

/// Counts of elements of `memory`, as they go with buffer_of(memory).
comm::Counts counts_of(const at::Tensor& memory, comm::Counts elements) {
  if (buffer_of(memory).type != comm::DataType::u8) return elements;
  for (int64_t& count : elements) count *= memory.element_size();
  return elements;
}

class CollectiveBucket : public FlatGradients {
 public:
  CollectiveBucket(const plan::Bucket& bucket, comm::Communicator& communicator, at::Device device)
      : FlatGradients(
            bucket, communicator.rank(),
            at::zeros({bucket.elements()}, at::TensorOptions(device).dtype(gradient_type(bucket)))),
        communicator_(communicator),
        // A portion's gradients are used up by the step before new rows are written in their place.
        rows_(parameter_type(bucket) == gradients_.scalar_type()
                  ? gradients_
                  : at::zeros({bucket.elements()},
                              gradients_.options().dtype(parameter_type(bucket)))) {}

  comm::Work start_grad_sync(uint32_t) override {
    return communicator_.reduce_scatter(buffer_of(gradients_),
                                        buffer_of(portion_of(gradients_, rank_)), bucket_.counts);
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    return {segment_of(gradients_, rank_, own)};
  }

  double reduce_and_norm() override {
    return at::linalg_vector_norm(portion_of(gradients_, rank_), 2, {}, false, at::kDouble)
        .item<double>();
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices, const std::vector<bool>&,
                              uint32_t) override {
    if (communicator_.size() == 1) return {};
    for (const plan::Segment& own : bucket_.segments[rank_]) {
      segment_of(rows_, rank_, own).copy_(matrices[own.parameter].rows(own.range));
    }
    return communicator_.all_gather(buffer_of(portion_of(rows_, rank_)), buffer_of(rows_),
                                    counts_of(rows_, bucket_.counts));
  }

  void finish_param_sync(std::span<ParameterMatrix> matrices,
                         const std::vector<bool>& used) override {
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      if (rank == rank_) continue;
      for (const plan::Segment& segment : bucket_.segments[rank]) {
        if (!used[segment.parameter]) continue;
        matrices[segment.parameter].rows(segment.range).copy_(segment_of(rows_, rank, segment));
      }
    }
  }

 private:
  comm::Communicator& communicator_;
  /// [elements] in the parameters' type; where that is the gradients', in their memory
  at::Tensor rows_;
};

}  // namespace

std::unique_ptr<GradientBucket> make_collective_bucket(const plan::Bucket& bucket,
                                                       comm::Communicator& communicator,
                                                       at::Device device) {
  return std::make_unique<CollectiveBucket>(bucket, communicator, device);
}

}  // namespace fusedbun
