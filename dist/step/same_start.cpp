#include "fusedbun/dist/step/same_start.h"

#include "fusedbun/dist/comm/object_collectives.h"

namespace fusedbun {

void require_same_on_all_ranks(comm::Communicator& host, std::span<const std::string> lines) {
  comm::verify_equal_across_ranks(
      host, lines, "all ranks must build the same model with the same options in the same order");
}

}  // namespace fusedbun
