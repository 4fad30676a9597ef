#pragma once
// MessageCommunicator: the Communicator of host memory over any Transport. Gloo and MPI differ in their transport only.
//
// A call's first messages leave at once, on the caller's thread, so all operations under way travel together. One
// thread per communicator finishes them in order: waits, adds in rank order, starts the next round. So a sum overlaps
// with the messages of the operations behind it, and with the caller's own work.
//
// Invariants: 1. The first failure (lost peer, missed deadline, mismatch, abort) breaks the communicator, its groups
// and its parent; every operation under way or started later fails with it. 2. When a wait has thrown, nothing touches
// that operation's buffers any more. 3. A group has connections, operation numbers and a thread of its own where the
// transport can make connections, so its messages never wait behind its parent's.
//
// Thread safety: as Communicator.
#include <chrono>
#include <memory>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/comm/transport.h"

namespace fusedbun::comm {

/// `timeout`: its first Communicator::timeout().
std::unique_ptr<Communicator> make_message_communicator(std::unique_ptr<Transport> transport,
                                                        std::chrono::milliseconds timeout);

}  // namespace fusedbun::comm
