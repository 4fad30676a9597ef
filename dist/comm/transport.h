#pragma once
// Transport: what a host backend (Gloo, MPI) brings to message_communicator: point-to-point messages between ranks.
//
// Invariants: 1. Messages from one rank to another under one tag arrive in the order in which they were started.
// 2. start() never waits for a peer. 3. Once a Transfer is destroyed, nothing touches its messages' memory.
//
// Thread safety: start() from one thread at a time (the caller locks); Transfer::wait() from any one thread, at the
// same time as start(); close() from any thread at any time.
#include <atomic>
#include <memory>
#include <string_view>
#include <vector>

#include "fusedbun/dist/comm/rounds.h"

namespace fusedbun::comm {

/// Messages under way.
class Transfer {
 public:
  virtual ~Transfer() = default;
  /// Blocks until all have moved; `peer` is the rank waited for at the moment, for whoever loses patience. Throws
  /// std::exception with the peer and the library's text when a message cannot move any more, and soon after close().
  virtual void wait(std::atomic<int>& peer) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view backend() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Throws std::exception when a connection is gone. 0 <= tag <= kTagMax.
  virtual std::unique_ptr<Transfer> start(const std::vector<Message>& sends,
                                          const std::vector<Message>& receives, int tag) = 0;
  /// Gives up all connections: pending waits throw soon, and the peers notice as far as the library can tell them.
  virtual void close() noexcept = 0;

  static constexpr int kTagMax = (1 << 23) - 1;  // what Open MPI has over UCX
};

}  // namespace fusedbun::comm
