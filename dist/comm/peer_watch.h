#pragma once
// PeerWatch: what the ranks of one communicator tell one another beside its operations, and what follows from it.
//
// A thread looks every 50 ms. It finds a rank whose connection is gone, also in the middle of a message. When an
// operation has not moved for 200 ms it asks the rank that is waited for, which compares its own operation of that
// number: so calls that do not match are named on all ranks, and operations that match pay nothing. A rank that leaves
// says so, and one that fails says why.
//
// Invariants: 1. A mismatch is told only from two calls of one number, so a slow rank is never blamed. 2. The watch
// holds no lock of its own while it breaks the family.
//
// Thread safety: all of it, from any thread.
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/family.h"
#include "fusedbun/dist/comm/transport.h"

namespace fusedbun::comm {

/// What the watch knows of its communicator's operations.
class WatchedOperations {
 public:
  struct Waiting {
    uint64_t number = 0;
    std::shared_ptr<const CollectiveCall> call;
    int peer = -1;                                 ///< waited for; -1: none yet
    Clock::duration stalled = Clock::duration(0);  ///< since something of it moved
  };
  virtual ~WatchedOperations() = default;
  /// The operation that is being finished; nothing if there is none.
  virtual std::optional<Waiting> waiting() const = 0;
  /// Operation `number`, under way or among the last that ended; else null.
  virtual std::shared_ptr<const CollectiveCall> find(uint64_t number) const = 0;
  virtual uint64_t next_number() const = 0;
};

class PeerWatch {
 public:
  PeerWatch(Transport& transport, Family& family, const WatchedOperations& operations);
  ~PeerWatch() { stop(); }
  PeerWatch(const PeerWatch&) = delete;  // owns a thread

  void stop();

  /// Operation `number` was called: compares it with what peers asked before, and breaks the family if they differ.
  void called(uint64_t number, const CollectiveCall& call);
  /// Why operation `number` failed, if a peer has said so or left before it; `needs(peer)`: whether the operation
  /// takes it.
  std::optional<Failure> explain(uint64_t number, const CollectiveCall& call,
                                 const std::function<bool(int peer)>& needs);
  /// What is known of a rank that lets this one wait for operation `number`, to end a sentence.
  std::string describe(int peer, uint64_t number) const;

  /// Tells all peers that this rank calls nothing more.
  void say_left();
  void say_failed(const Failure& failure) noexcept;

 private:
  struct Peer {
    std::optional<ControlFrame> ask;   // of an operation that this rank has not called yet
    std::optional<ControlFrame> left;  // before which operation
    std::string gone;                  // what the library said
    bool is_gone = false;
    bool answered = true;           // the last ask
    uint64_t next = 0;              // its next operation, when it answered
    std::optional<uint64_t> asked;  // the operation of the last ask
  };

  void run();
  std::optional<Failure> look();  // takes all frames
  std::optional<Failure> handle(int peer, const ControlFrame& frame);
  std::optional<Failure> compare(int peer, const ControlFrame& ask,
                                 const CollectiveCall& mine) const;
  std::optional<Failure> lost_peer();
  Failure left_failure(int peer, uint64_t number, const CollectiveCall& call) const;
  void ask();
  void tell_all(const ControlFrame& frame) noexcept;

  Transport& transport_;
  Family& family_;
  const WatchedOperations& operations_;
  const std::chrono::milliseconds pause_;
  mutable std::mutex mutex_;
  std::vector<Peer> peers_;
  std::optional<Failure> told_;  ///< what a frame of a peer came to
  std::atomic<bool> has_asks_{false};
  std::mutex stop_mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace fusedbun::comm
