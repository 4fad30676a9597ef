#pragma once
// Small numbers that ranks tell each other outside the optimizer: sums, tables, and whether all were started alike.
// Collective: every rank calls them at the same point.
//
// Thread safety: as the communicator's.
#include <cstdint>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::train {

/// The element-wise sum over ranks, in rank order.
std::vector<double> sum_over_ranks(comm::Communicator& host, std::vector<double> values);

/// Something that must be equal on all ranks for the job to make sense.
struct StartFact {
  std::string name;  ///< "--batch"
  int64_t value = 0;
};
/// Throws ConfigError on every rank, naming the first fact and rank that differ from rank 0's.
void require_same_start(comm::Communicator& host, const std::vector<StartFact>& facts);

}  // namespace fusedbun::train
