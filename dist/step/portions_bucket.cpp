// A bucket whose portions travel as they are: an all_to_all brings every rank's gradients of my rows, and the step adds them
// up in rank order while it reads them.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "fusedbun/dist/step/gathered_bucket.h"

namespace fusedbun {
namespace {

class PortionsBucket : public GatheredBucket {
 public:
  PortionsBucket(const plan::Bucket& bucket, comm::Communicator& communicator, at::ScalarType wire)
      : GatheredBucket(bucket, communicator,
                       at::zeros({bucket.elements()}, at::TensorOptions().dtype(wire))),
        received_(at::zeros({communicator.size(), bucket.counts[communicator.rank()]},
                            at::TensorOptions().dtype(wire))),
        send_counts_(counts_of(gradients_, bucket.counts)),
        receive_counts_(communicator.size(), send_counts_[communicator.rank()]) {}

  comm::Work send_gradients(uint32_t) override {
    sum_.reset();
    return communicator_.all_to_all(buffer_of(gradients_), send_counts_, buffer_of(received_),
                                    receive_counts_);
  }

  // This rank's own gradients travel as all others do, rounded if those are: the sum does not depend on who owns a row.
  std::vector<at::Tensor> gradients_of(const plan::Segment& own) const override {
    const auto rows = [&own](const at::Tensor& portion) {
      return portion.narrow(0, own.offset, own.range.elements())
          .view({own.range.rows(), own.range.columns});
    };
    if (sum_.defined()) return {rows(sum_)};
    std::vector<at::Tensor> gradients;
    for (int64_t rank = 0; rank < received_.size(0); ++rank) {
      gradients.push_back(rows(received_[rank]));
    }
    return gradients;
  }

  double norm_of_sum() override {
    sum_ = at::empty({received_.size(1)}, received_.options().dtype(gradient_type(bucket_)));
    return add_up(received_.unbind(0), sum_);
  }

 private:
  at::Tensor received_;  ///< [rank][elements of this rank's portion]
  /// [elements of the portion] in the arithmetic's type, once the norm was asked for.
  at::Tensor sum_;
  comm::Counts send_counts_, receive_counts_;
};

}  // namespace

std::unique_ptr<BucketMemory> make_portions_bucket(const plan::Bucket& bucket,
                                                   comm::Communicator& communicator,
                                                   at::ScalarType wire) {
  return std::make_unique<PortionsBucket>(bucket, communicator, wire);
}

}  // namespace fusedbun
