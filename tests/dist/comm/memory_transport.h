#pragma once
// A transport between threads of this process: mailboxes in memory, with faults on request. With it the machinery
// that Gloo and MPI share runs without either, under the thread sanitizer too.
#include <chrono>
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/transport.h"

namespace fusedbun::comm::testing {

struct MemoryFaults {
  int refuse_start_on = -1;   ///< start() throws on this rank
  int lose_messages_to = -1;  ///< waits for messages from or to this rank throw
  int delay_us_max = 0;       ///< messages arrive after up to this long, in no order between ranks
  std::chrono::milliseconds packet_delay{0};  ///< every packet takes so long
};

/// Element r is rank r's.
std::vector<std::unique_ptr<Transport>> make_memory_transports(int size, MemoryFaults faults = {});

}  // namespace fusedbun::comm::testing
