#pragma once
// GatheredBucket: a bucket whose new rows reach the other ranks through a communicator. How gradients travel is left to the
// classes below it.
//
// Thread safety: none.
#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/bucket_memory.h"

namespace fusedbun {

class GatheredBucket : public BucketMemory {
 public:
  comm::Work send_rows(std::span<const ParameterMatrix> matrices, uint32_t round) override;
  void receive_rows(std::span<ParameterMatrix> matrices, const std::vector<bool>& used) override;

 protected:
  /// `gradients`: [elements] in any type that the communicator sends.
  GatheredBucket(const plan::Bucket& bucket, comm::Communicator& communicator,
                 at::Tensor gradients);

  comm::Communicator& communicator_;

 private:
  at::Tensor
      rows_;  ///< [elements] in the parameters' type; where that is the gradients', in their memory
};

/// The tensor's memory as a communicator takes it; types that it does not add up are bytes.
comm::Buffer buffer_of(const at::Tensor& memory);
/// Counts of elements of `memory`, as they go with buffer_of(memory).
comm::Counts counts_of(const at::Tensor& memory, comm::Counts elements);

}  // namespace fusedbun
