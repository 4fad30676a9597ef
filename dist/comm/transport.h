#pragma once
// Transport: what a host backend (Gloo, MPI) brings to message_communicator: point-to-point messages between ranks,
// and short control frames beside them.
//
// Invariants: 1. Messages from one rank to another under one tag arrive in the order in which they were started.
// 2. start() never waits for a peer. 3. Once a Transfer is destroyed, nothing touches its messages' memory. 4. A
// message meets only a receive of the same tag; the caller's tags hold a digest of the size, so that a library never
// sees two sizes meet.
//
// Thread safety: start(), send_control(), receive_control(), close(): any thread at any time. Transfer::wait() from
// any one thread, at the same time as these. group(): no other call at the same time but receive_control() and close().
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "fusedbun/dist/comm/control_frame.h"
#include "fusedbun/dist/comm/rounds.h"
#include "fusedbun/dist/comm/work.h"

namespace fusedbun::comm {

/// A message as a transport carries it.
struct Packet {
  int peer = 0;
  std::byte* data = nullptr;
  int64_t bytes = 0;
  int tag = 0;
};

/// How far a wait has come, readable from another thread.
class Progress {
 public:
  void waits_for(int peer) { peer_ = peer; }
  void moved() { moved_at_ = Clock::now().time_since_epoch().count(); }
  /// The rank waited for at the moment; -1: none yet.
  int peer() const { return peer_; }
  /// When a message last finished moving.
  Clock::time_point moved_at() const {
    return Clock::time_point(Clock::duration(moved_at_.load()));
  }

 private:
  std::atomic<int> peer_{-1};
  std::atomic<Clock::rep> moved_at_{Clock::now().time_since_epoch().count()};
};

/// Messages under way.
class Transfer {
 public:
  virtual ~Transfer() = default;
  /// Blocks until all have moved. Throws std::exception with the peer and the library's text when a message cannot
  /// move any more, and soon after close().
  virtual void wait(Progress& progress) = 0;
};

/// How a tag is divided: the number of the operation (modulo), and a digest of what the two ranks must agree on.
struct TagLayout {
  int number_bits = 0;
  int digest_bits = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view backend() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Tags of packets are below 2^(number_bits + digest_bits); the highest operation number is the transport's own.
  virtual TagLayout tags() const = 0;
  /// Throws std::exception when a connection is gone.
  virtual std::unique_ptr<Transfer> start(std::span<const Packet> sends,
                                          std::span<const Packet> receives) = 0;

  /// What a frame is about. A frame may be sent only when the peer has received the last one of its slot.
  enum class Slot : uint8_t { asks, answers, last_words };
  /// Never waits for the peer. Throws std::exception when the connection is gone.
  virtual void send_control(int peer, Slot slot, const ControlFrame& frame) = 0;
  /// The next frame from `peer`, if one has arrived. Throws std::exception when the connection is gone, where the
  /// library notices; frames that arrived before are returned first.
  virtual std::optional<ControlFrame> receive_control(int peer) = 0;

  /// A transport of `ranks` alone, this process being ranks[place]: on connections of its own where the library can
  /// make them. Collective over `ranks`. `number` tells it from others that came of the same family. Throws
  /// fusedbun::Error.
  virtual std::unique_ptr<Transport> group(const std::vector<int>& ranks, int place,
                                           int64_t number) = 0;

  /// Gives up all connections, after frames that were sent have left or a moment has passed: pending waits throw soon,
  /// and the peers notice as far as the library can tell them.
  virtual void close() noexcept = 0;
};

}  // namespace fusedbun::comm
