#pragma once
// PointToPointBucket: CPUs. Messages carry long segments from the gradients and parameters where they are, and new rows arrive where they
// belong; short segments are packed into one message. What arrives is added up by the update while it reads it. Between hosts each row
// travels once, and the ranks of a host pass it on (plan/row_routes.h).
//
// Rounded updates: what a step changes of a row travels as bfloat16, and all ranks, its owner too, add that to the float32 row. So ranks
// stay equal to the bit, no second copy of the rows is kept, and each change is off by at most 2^-8 of itself; nothing is lost below it,
// because bfloat16 has float32's exponents. ZeRO++ (Wang et al., 2023) sends quantised weights instead, which needs a master beside them.
//
// Thread safety: as GradientBucket; the layout is a value.
#include <cstdint>
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/row_routes.h"
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

struct PointToPointOptions {
  at::ScalarType gradient_type;  ///< wire_type(...)
  bool rounds_updates = false;   ///< of float32 parameters; others' rows travel as they are
  int64_t in_place_bytes = 0;
  plan::RowRoutes routes = {};  ///< from every other rank
};

/// The communicator outlives the bucket.
std::unique_ptr<GradientBucket> make_point_to_point_bucket(const plan::Bucket& bucket,
                                                           comm::Communicator& communicator,
                                                           const PointToPointOptions& options);

}  // namespace fusedbun
