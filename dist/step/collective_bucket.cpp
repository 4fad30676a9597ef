#include "fusedbun/dist/step/collective_bucket.h"

#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "fusedbun/dist/step/flat_gradient_bucket.h"

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

namespace {

class CollectiveBucket final : public FlatGradientBucket {
 public:
  CollectiveBucket(const plan::Bucket& bucket, const PortionLayout& layout,
                   comm::Communicator& communicator)
      : FlatGradientBucket(bucket, communicator.rank(), layout.begins,
                           zeros(layout.elements, sum_type(bucket))),
        communicator_(communicator),
        counts_(layout.counts),
        // Not in place: after a sync, gradients may be added again and all of them sent once more.
        sum_(communicator.size() == 1 ? gradients_ : zeros(counts_[rank_], sum_type(bucket))),
        // The gradients are not read any more when new rows are written.
        rows_(parameter_type(bucket) == sum_type(bucket)
                  ? gradients_
                  : zeros(layout.elements, parameter_type(bucket))) {}

  comm::Work start_grad_sync(uint32_t) override {
    if (communicator_.size() == 1) return {};
    return communicator_.reduce_scatter(buffer_of(gradients_), buffer_of(sum_), counts_);
  }

  std::vector<at::Tensor> reduced_gradients(const plan::Segment& own) const override {
    return {sum_.narrow(0, own.offset, own.range.elements())
                .view({own.range.rows(), own.range.columns})};
  }

  double reduce_and_norm() override {
    return at::linalg_vector_norm(sum_.narrow(0, 0, bucket_.counts[rank_]), 2, {}, false,
                                  at::kDouble)
        .item<double>();
  }

  comm::Work start_param_sync(std::span<const ParameterMatrix> matrices, const std::vector<bool>&,
                              uint32_t) override {
    if (communicator_.size() == 1) return {};
    for (const plan::Segment& own : bucket_.segments[rank_]) {
      copy(matrices[own.parameter].rows(own.range).const_data_ptr(), place_of(rows_, rank_, own),
           own.range.elements());
    }
    const at::Tensor own_portion = rows_.narrow(0, begins_[rank_], counts_[rank_]);
    return communicator_.all_gather(buffer_of(own_portion), buffer_of(rows_),
                                    counts_of(rows_, counts_));
  }

  void finish_param_sync(std::span<ParameterMatrix> matrices,
                         const std::vector<bool>& used) override {
    for (int rank = 0; rank < communicator_.size(); ++rank) {
      if (rank == rank_) continue;
      for (const plan::Segment& segment : bucket_.segments[rank]) {
        if (!used[segment.parameter]) continue;
        copy(place_of(rows_, rank, segment),
             matrices[segment.parameter].rows(segment.range).data_ptr(), segment.range.elements());
      }
    }
  }

 private:
  static at::Tensor zeros(int64_t elements, at::ScalarType type) {
    return at::zeros({elements}, at::TensorOptions().dtype(type));
  }
  void copy(const void* from, void* to, int64_t elements) const {
    std::memcpy(to, from, static_cast<size_t>(elements) * rows_.element_size());
  }

  comm::Communicator& communicator_;
  const comm::Counts counts_;  ///< [rank] as the collectives carry them
  const at::Tensor sum_;       ///< this rank's portion, reduced
  const at::Tensor rows_;      ///< laid out as gradients_, in the parameters' type
};

}  // namespace

PortionLayout lay_out_portions(const plan::Bucket& bucket) {
  constexpr int64_t kMultiple = 32;  // 64 bytes of the shortest type
  constexpr int64_t kPaddingAlwaysAllowed = 1024;
  const auto ranks = std::ssize(bucket.counts);
  const int64_t longest = std::ranges::max(bucket.counts);
  const int64_t padded = (longest + kMultiple - 1) / kMultiple * kMultiple;
  const int64_t padding = padded * ranks - bucket.elements();
  PortionLayout layout;
  layout.counts = bucket.counts;
  if (padding <= bucket.elements() / 8 + kPaddingAlwaysAllowed * ranks) {
    layout.counts.assign(ranks, padded);
  }
  layout.begins.resize(ranks);
  std::exclusive_scan(layout.counts.begin(), layout.counts.end(), layout.begins.begin(),
                      int64_t{0});
  layout.elements = std::reduce(layout.counts.begin(), layout.counts.end());
  return layout;
}

std::unique_ptr<GradientBucket> make_collective_bucket(const plan::Bucket& bucket,
                                                       comm::Communicator& communicator) {
  return std::make_unique<CollectiveBucket>(bucket, lay_out_portions(bucket), communicator);
}

}  // namespace fusedbun
