#pragma once
// Which segments of a bucket travel from where they lie, and where the others are packed: long ones gain nothing from a copy,
// short ones would each pay for a message.
//
// Thread safety: values and a pure function.
#include <cstdint>
#include <vector>

#include "fusedbun/dist/plan/shard_plan.h"

namespace fusedbun {

struct ExchangeLayout {
  /// [rank][segment] elements before the segment in the rank's portion, laid out with the packed segments first.
  std::vector<std::vector<int64_t>> places;
  std::vector<int64_t> packed;         ///< [rank] elements of the packed segments
  std::vector<int64_t> packed_begins;  ///< [rank] elements that the ranks before it pack
  int64_t packed_total = 0;

  bool packs(int rank, size_t segment) const { return places[rank][segment] < packed[rank]; }
};

/// Segments of fewer bytes than `in_place_bytes` are packed.
ExchangeLayout lay_out_exchange(const plan::Bucket& bucket, int64_t element_bytes,
                                int64_t in_place_bytes);

}  // namespace fusedbun
