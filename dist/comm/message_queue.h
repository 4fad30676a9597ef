#pragma once
// MessageQueue: the operations under way of one MessageCommunicator, and the thread that finishes them in order.
// Connections: the transport that a communicator shares with its groups, and the one failure that breaks them all.
//
// Invariants: 1. An operation's first messages leave inside post(), in the order of the calls. 2. The thread ends
// operations in that order; each ends exactly once, well or with the failure. 3. close() of the transport follows the
// failure, so a wait that throws finds it set.
//
// Thread safety: Connections and wait(), abort(): any thread. post(): one thread.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/comm/transport.h"
#include "fusedbun/dist/comm/work.h"

namespace fusedbun::comm {

class Connections {
 public:
  explicit Connections(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}

  const Transport& transport() const { return *transport_; }
  std::unique_ptr<Transfer> start(const Round& round, int tag);
  /// The first failure is kept and closes the transport.
  void fail(Failure failure);
  std::optional<Failure> failure() const;

  /// The lowest group number that this process has not used. Numbers are never used twice: they are part of the tags.
  int64_t next_group() const;
  void set_next_group(int64_t number);

 private:
  mutable std::mutex mutex_;
  std::unique_ptr<Transport> transport_;
  std::optional<Failure> failure_;
  int64_t next_group_ = 1;  // 0 is all ranks
};

class MessageQueue {
 public:
  /// One operation under way. After post() only the queue touches it.
  struct Entry {
    Call call;
    uint64_t number = 0;
    int tag = 0;
    std::vector<Round> rounds;
    size_t started = 0;  // rounds whose messages have left
    std::deque<std::unique_ptr<Transfer>>
        transfers;  // of the rounds that are started and not waited for
    bool ended = false;
    Clock::time_point ended_at;
    std::optional<Failure> failure;
  };

  /// `members[r]` is rank r's rank in the transport; `group` tells this queue's tags from the others'.
  MessageQueue(std::shared_ptr<Connections> connections, std::vector<int> members, int rank,
               int64_t group);
  /// Breaks the connections if operations are still under way.
  ~MessageQueue();
  MessageQueue(const MessageQueue&) = delete;  // owns a thread

  std::shared_ptr<Entry> post(Call call);
  /// Throws the failure; after `timeout` there is one.
  void wait(const Entry& entry, std::chrono::milliseconds timeout);
  /// Ends an operation that nobody will wait for, breaking the connections.
  void drop(const Entry& entry);

  Connections& connections() { return *connections_; }
  int rank() const { return rank_; }
  int size() const { return static_cast<int>(members_.size()); }

 private:
  void run();
  std::optional<Failure> finish(Entry& entry);
  void start_round(Entry& entry);
  /// `waited_for` rounds have moved.
  void start_early_rounds(Entry& entry, size_t waited_for);
  Failure failure_in(const Entry& entry, const std::string& what) const;

  const std::shared_ptr<Connections> connections_;
  const std::vector<int> members_;
  const int rank_;
  const int64_t group_;
  mutable std::mutex mutex_;
  std::condition_variable posted_;
  std::condition_variable ended_;
  std::deque<std::shared_ptr<Entry>> entries_;
  uint64_t next_number_ = 0;
  bool stopping_ = false;
  std::atomic<int> waiting_for_{-1};  // the peer, as the transport counts
  std::thread thread_;
};

}  // namespace fusedbun::comm
