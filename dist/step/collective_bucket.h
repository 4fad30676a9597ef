#pragma once
// CollectiveBucket: one reduce-scatter brings this rank's portion of all gradients as one sum, one all-gather all ranks' new rows. In host
// memory, over any communicator; on GPUs device_bucket.h does the same there.
//
// Thread safety: as GradientBucket.
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

/// The tensor's memory as a communicator takes it; types that it does not add up are bytes.
comm::Buffer buffer_of(const at::Tensor& memory);
/// Counts of elements of `memory`, as they go with buffer_of(memory).
comm::Counts counts_of(const at::Tensor& memory, comm::Counts elements);

/// How the portions of all ranks lie in a bucket's memory.
struct PortionLayout {
  comm::Counts counts;          ///< [rank] elements, padding included
  std::vector<int64_t> begins;  ///< [rank] elements before the portion
  int64_t elements = 0;         ///< of all portions
};

/// Portions are padded to one length, a multiple of 64 bytes, because NCCL moves equal portions as one operation and others as one per
/// rank; unless the padding were more than an eighth of the bucket and 4 KiB per rank: then they stay as they are.
PortionLayout lay_out_portions(const plan::Bucket& bucket);

/// `communicator` outlives the bucket. Gradients are reduced in sum_type(bucket), rows travel in the parameters' type.
std::unique_ptr<GradientBucket> make_collective_bucket(const plan::Bucket& bucket,
                                                       comm::Communicator& communicator);

}  // namespace fusedbun
