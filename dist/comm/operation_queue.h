#pragma once
// OperationQueue: the operations under way of one MessageCommunicator, and the thread that finishes them in order.
//
// Invariants: 1. An operation's first messages leave inside post(), in the order of the calls. 2. The thread ends
// operations in that order; each ends exactly once, well or with the failure. 3. close() of the transport follows the
// family's failure, so a wait that throws finds it set. 4. Deadlines run from the last message that moved.
//
// Thread safety: wait(), drop(): any thread. post(): one thread.
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
#include "fusedbun/dist/comm/family.h"
#include "fusedbun/dist/comm/peer_watch.h"
#include "fusedbun/dist/comm/transport.h"
#include "fusedbun/dist/comm/work.h"

namespace fusedbun::comm {

class OperationQueue final : private WatchedOperations, private Family::Member {
 public:
  /// One operation under way. After post() only the queue touches it.
  struct Entry {
    std::shared_ptr<const CollectiveCall> call;
    uint64_t number = 0;
    uint64_t digest = 0;  // of the call
    std::vector<Round> rounds;
    size_t started = 0;  // rounds whose messages have left
    std::deque<std::unique_ptr<Transfer>>
        transfers;  // of the rounds that are started and not waited for
    Clock::time_point posted_at;
    bool ended = false;
    Clock::time_point ended_at;
    std::optional<Failure> failure;
  };

  OperationQueue(std::shared_ptr<Family> family, std::unique_ptr<Transport> transport);
  /// Breaks the family if operations are still under way, or an exception unwinds; else tells the peers that this rank
  /// left.
  ~OperationQueue() override;
  OperationQueue(const OperationQueue&) = delete;  // owns a thread

  std::shared_ptr<Entry> post(CollectiveCall call);
  /// Throws the failure; when nothing has moved for `timeout` there is one.
  void wait(const Entry& entry, std::chrono::milliseconds timeout);
  /// Ends an operation that will not be waited for, breaking the family.
  void drop(const Entry& entry);

  Family& family() const { return *family_; }
  std::shared_ptr<Family> shared_family() const { return family_; }
  Transport& transport() const { return *transport_; }
  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }

 private:
  std::optional<Waiting> waiting() const override;
  std::shared_ptr<const CollectiveCall> find(uint64_t number) const override;
  uint64_t next_number() const override;
  void break_with(const Failure& failure) noexcept override;
  std::vector<std::string> pending_operations() const override;

  void run();
  std::optional<Failure> finish(Entry& entry);
  void start_round(Entry& entry);
  /// `waited_for` rounds have moved.
  void start_early_rounds(Entry& entry, size_t waited_for);
  std::vector<Packet> packets_of(const Entry& entry, const std::vector<Message>& messages) const;
  void fail(const Entry& entry, const std::string& problem);
  Failure failure_in(const Entry& entry, const std::string& problem) const;
  void forget_ended_calls();

  const std::shared_ptr<Family> family_;
  const std::unique_ptr<Transport> transport_;
  mutable std::mutex mutex_;
  std::condition_variable posted_;
  std::condition_variable ended_;
  std::deque<std::shared_ptr<Entry>> entries_;
  std::deque<std::shared_ptr<const CollectiveCall>> calls_;  // under way and just ended, for find()
  uint64_t first_call_ = 0;                                  // the number of calls_.front()
  uint64_t next_number_ = 0;
  bool stopping_ = false;
  Progress progress_;
  std::unique_ptr<PeerWatch> watch_;  // none at size 1
  std::thread thread_;
};

}  // namespace fusedbun::comm
