#pragma once
// DeviceBucket: a bucket on a GPU. Hooks only remember gradients; when the last one has fired, one launch tests them all, and copies them on
// its way into one piece of memory, of which one reduce-scatter brings this rank's portion as one sum. After the update one all-gather brings
// all ranks' new rows, and one launch puts them into the parameters. One rank alone copies nothing: its gradients are read where they are.
// Nothing waits for the GPU.
//
// Portions lie as in collective_bucket.h.
//
// Thread safety: as GradientBucket.
#include <memory>
#include <span>

#include "fusedbun/core/gpu/device_api.h"
#include "fusedbun/core/gpu/steps_under_way.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/transport_choice.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

/// Memory that buckets take turns in, so that it is that of a few, however many there are: bucket b has slot b mod kSlots. Who starts to use a slot has seen to it that nothing of another bucket is under way in it.
class DeviceBucketRing {
 public:
  static constexpr int kSlots = plan::kBucketsOnAGpu;

  /// `holds_sums`: the reduced portions lie in the slots too; they must have been used before the slot's next bucket begins.
  DeviceBucketRing(std::span<const plan::Bucket> buckets, int rank, at::Device device,
                   bool holds_sums);

  bool holds_sums() const { return holds_sums_; }
  at::Tensor gradients(int bucket, int64_t elements, at::ScalarType type) const;
  /// In the memory of the gradients, which are not read any more when new rows are written.
  at::Tensor rows(int bucket, int64_t elements, at::ScalarType type) const {
    return gradients(bucket, elements, type);
  }
  at::Tensor sum(int bucket, int64_t elements, at::ScalarType type) const;

 private:
  at::Tensor slot(int bucket) const { return memory_[bucket % memory_.size(0)]; }

  at::Tensor memory_;  ///< [slot, bytes]; as few as there are buckets
  int64_t sum_begins_ = 0;
  bool holds_sums_;
};

/// Everything outlives the bucket, which is number `number`. Gradients are reduced in sum_type(bucket), rows travel in the parameters'
/// type. `ring`, null where there is one rank, may go. `keeps_gradients`: they may be sent again in the same step.
std::unique_ptr<GradientBucket> make_device_bucket(
    const plan::Bucket& bucket, int number, at::Device device, comm::Communicator& communicator,
    StepsUnderWay& under_way, const DeviceBucketRing* ring, bool keeps_gradients);

}  // namespace fusedbun
