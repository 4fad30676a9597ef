#pragma once
// Family: a communicator, its groups and theirs. The first failure of one breaks them all.
//
// Thread safety: all of it, from any thread.
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/failure.h"

namespace fusedbun::comm {

class Family {
 public:
  class Member {
   public:
    virtual ~Member() = default;
    /// Tells the peers and closes the connections. By any thread, perhaps more than once.
    virtual void break_with(const Failure& failure) noexcept = 0;
    /// One sentence per operation that has not ended. Any thread may ask.
    virtual std::vector<std::string> pending_operations() const = 0;
  };

  /// A member that joins a broken family is broken at once.
  void add(Member& member);
  /// Returns when break_with() is not running and will not be called any more.
  void remove(Member& member);

  /// The first failure is kept and breaks every member.
  void fail(const Failure& failure);
  std::optional<Failure> failure() const;

  /// Of the messages of all members to other ranks.
  void add_sent_bytes(int64_t bytes) { sent_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  int64_t sent_bytes() const { return sent_bytes_.load(std::memory_order_relaxed); }

  /// Of all members.
  std::vector<std::string> pending_operations() const;

  /// The lowest group number that this process has not used.
  int64_t next_group() const;
  void set_next_group(int64_t number);

 private:
  mutable std::mutex mutex_;  // of failure_ and next_group_
  std::optional<Failure> failure_;
  int64_t next_group_ = 1;
  std::atomic<int64_t> sent_bytes_ = 0;
  mutable std::mutex members_mutex_;
  std::set<Member*> members_;
};

}  // namespace fusedbun::comm
