#include "fusedbun/launcher/train/across_ranks.h"

#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::train {

std::vector<double> sum_over_ranks(comm::Communicator& host, std::vector<double> values) {
  host.all_reduce(comm::Buffer::of(std::span(values)), comm::ReduceOp::sum).wait();
  return values;
}

std::vector<int64_t> gather_from_ranks(comm::Communicator& host, int64_t value) {
  std::vector<int64_t> all(host.size());
  host.all_gather(comm::Buffer::of(std::span(&value, 1)), comm::Buffer::of(std::span(all)),
                  comm::Counts(host.size(), 1))
      .wait();
  return all;
}

void require_same_start(comm::Communicator& host, const std::vector<StartFact>& facts) {
  for (const StartFact& fact : facts) {
    const std::vector<int64_t> all = gather_from_ranks(host, fact.value);
    for (size_t rank = 1; rank < all.size(); ++rank) {
      FUSEDBUN_REQUIRE(all[rank] == all[0], ConfigError,
                       fact.name + " is not the same on rank " + std::to_string(rank) +
                           " as on rank 0: start all ranks with the same flags and the same text");
    }
  }
}

}  // namespace fusedbun::train
