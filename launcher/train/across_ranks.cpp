#include "fusedbun/launcher/train/across_ranks.h"

#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun::train {

std::vector<double> sum_over_ranks(comm::Communicator& host, std::vector<double> values) {
  host.all_reduce(comm::Buffer::of(std::span(values)), comm::ReduceOp::sum).wait();
  return values;
}

void require_same_start(comm::Communicator& host, const std::vector<StartFact>& facts) {
  for (const StartFact& fact : facts) {
    const std::vector<int64_t> all = comm::all_gather_object(host, fact.value);
    for (size_t rank = 1; rank < all.size(); ++rank) {
      if (all[rank] == all[0]) continue;
      comm::wait_until_all_have_heard(host);
      throw ConfigError(fact.name + " is not the same on rank " + std::to_string(rank) +
                        " as on rank 0: start all ranks with the same flags and the same text");
    }
  }
}

}  // namespace fusedbun::train
