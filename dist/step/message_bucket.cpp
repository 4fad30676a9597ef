// A bucket that travels through a communicator, gradients and rows in the same memory.
#include <ATen/ATen.h>

#include "fusedbun/dist/step/bucket_memory.h"
#include "fusedbun/dist/step/row_gather.h"

namespace fusedbun {
namespace {

class MessageBucket : public BucketMemory {
 public:
  MessageBucket(const plan::Bucket& bucket, comm::Communicator& communicator, at::Device device)
      : BucketMemory(
            bucket, communicator.rank(),
            at::zeros({bucket.elements()}, at::TensorOptions(device).dtype(gradient_type(bucket)))),
        communicator_(communicator),
        // A portion's gradients are used up by the step before its new rows are written in their place.
        rows_(bucket_, communicator,
              parameter_type(bucket) == gradient_type(bucket)
                  ? gradients_
                  : at::zeros({bucket.elements()},
                              at::TensorOptions(device).dtype(parameter_type(bucket)))) {}

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

  comm::Work send_rows(std::span<const ParameterMatrix> matrices, uint32_t) override {
    return rows_.send(matrices);
  }
  void receive_rows(std::span<ParameterMatrix> matrices, const std::vector<bool>& used) override {
    rows_.receive(matrices, used);
  }

 private:
  comm::Communicator& communicator_;
  RowGather rows_;
};

}  // namespace

std::unique_ptr<BucketMemory> make_message_bucket(const plan::Bucket& bucket,
                                                  comm::Communicator& communicator,
                                                  at::Device device) {
  return std::make_unique<MessageBucket>(bucket, communicator, device);
}

}  // namespace fusedbun
