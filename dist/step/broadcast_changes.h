#pragma once
// How accepted changes reach every rank: rank 0's header announces a newer revision, then their
// content is broadcast once.
//
// Thread safety: none; collective over `host`.
#include <vector>

#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun {

/// The entries of revisions (after, up_to], the same on every rank. `port` is rank 0's and read
/// there alone. Collective.
std::vector<changes::ChangeEntry> broadcast_changes(comm::Communicator& host,
                                                    changes::ControlPort* port, int64_t after,
                                                    int64_t up_to);

}  // namespace fusedbun
