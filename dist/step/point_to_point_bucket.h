#pragma once
// PointToPointBucket: CPUs. Messages carry long segments from the gradients and parameters where they are, and new rows arrive where they
// belong; short segments are packed into one message. What arrives is added up by the update while it reads it.
//
// Thread safety: as GradientBucket; the layout is a value.
#include <cstdint>
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/shard_plan.h"
#include "fusedbun/dist/step/gradient_bucket.h"

namespace fusedbun {

/// Which segments are packed, and where: a long segment gains nothing from a copy, a short one would pay for a message of its own.
struct PackedLayout {
  /// [rank][segment] elements before the segment in the rank's portion, laid out with the packed segments first.
  std::vector<std::vector<int64_t>> places;
  std::vector<int64_t> packed;         ///< [rank] elements of the packed segments
  std::vector<int64_t> packed_begins;  ///< [rank] elements that the ranks before it pack
  int64_t packed_total = 0;

  bool packs(int rank, size_t segment) const { return places[rank][segment] < packed[rank]; }
};

/// Segments of fewer bytes than `in_place_bytes` are packed.
PackedLayout lay_out_packed(const plan::Bucket& bucket, int64_t element_bytes,
                            int64_t in_place_bytes);

/// The type in which gradients travel: the parameters', or bfloat16 for float32 ones if `rounds_gradients`.
at::ScalarType wire_type(const plan::Bucket& bucket, bool rounds_gradients);

/// `wire` is wire_type(...). The communicator outlives the bucket.
std::unique_ptr<GradientBucket> make_point_to_point_bucket(const plan::Bucket& bucket,
                                                           comm::Communicator& communicator,
                                                           at::ScalarType wire,
                                                           int64_t in_place_bytes);

}  // namespace fusedbun
