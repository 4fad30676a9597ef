#pragma once
// Runs a function on W ranks, each a thread of this process, connected by the local communicator.
#include <chrono>
#include <functional>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::testing {

/// Calls body(communicator) on `size` threads and waits for all. If some throw, the others are aborted and the exception of
/// the lowest rank that failed by itself (not because it was aborted) is thrown again. `timeout` ends every wait between ranks.
void run_ranks(int size, const std::function<void(comm::Communicator&)>& body,
               std::chrono::milliseconds timeout = std::chrono::seconds(60));

}  // namespace fusedbun::testing
