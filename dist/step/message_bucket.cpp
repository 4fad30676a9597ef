// A bucket that travels through a communicator, gradients and rows in the same memory.
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/zeros.h>

#include "fusedbun/dist/step/gathered_bucket.h"

namespace fusedbun {
namespace {

class MessageBucket : public GatheredBucket {
 public:
  MessageBucket(const plan::Bucket& bucket, comm::Communicator& communicator, at::Device device)
      : GatheredBucket(bucket, communicator,
                       at::zeros({bucket.elements()},
                                 at::TensorOptions(device).dtype(gradient_type(bucket)))) {}

  comm::Work send_gradients(uint32_t) override {
    return communicator_.reduce_scatter(buffer_of(gradients_),
                                        buffer_of(portion_of(gradients_, rank_)), bucket_.counts);
  }

  std::vector<at::Tensor> gradients_of(const plan::Segment& own) const override {
    return {segment_of(gradients_, rank_, own)};
  }

  double norm_of_sum() override {
    return at::linalg_vector_norm(portion_of(gradients_, rank_), 2, {}, false, at::kDouble)
        .item<double>();
  }
};

}  // namespace

std::unique_ptr<BucketMemory> make_message_bucket(const plan::Bucket& bucket,
                                                  comm::Communicator& communicator,
                                                  at::Device device) {
  return std::make_unique<MessageBucket>(bucket, communicator, device);
}

}  // namespace fusedbun
