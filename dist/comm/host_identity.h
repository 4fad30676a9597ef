#pragma once
// Which ranks are on one host.
//
// Thread safety: as the communicator's.
#include <string>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// Equal on two ranks if a pid means the same process to both: the same boot of the same kernel, the same pid
/// namespace.
std::string host_identity();

/// [rank] -> the lowest rank on its host. Collective.
std::vector<int> hosts_of_ranks(Communicator& host);

}  // namespace fusedbun::comm
