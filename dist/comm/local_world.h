#pragma once
// LocalWorld: where ranks that are threads meet. Each leaves its call; the last to arrive moves the data of all.
//
// Invariants: 1. Data moves only once all ranks' calls are there and match, and nothing else is broken. 2. While it
// moves, no rank's wait returns, so all buffers are still there. 3. The first failure breaks the world for good.
//
// Thread safety: all of it, from any thread.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/call.h"
#include "fusedbun/dist/comm/failure.h"

namespace fusedbun::comm {

class LocalWorld {
 public:
  /// Where the ranks' calls of one number meet. The world's mutex guards it.
  struct Meeting {
    enum class State : uint8_t { gathering, moving, done };
    uint64_t number = 0;
    State state = State::gathering;
    std::vector<std::optional<CollectiveCall>> calls;  ///< by rank; empty: not here yet
    size_t arrived = 0;
  };

  explicit LocalWorld(int size) : size_(size) {}

  int size() const { return size_; }

  /// Rank `rank` arrives with its call number `number`. Throws ConfigError if it does not match the others'. In a
  /// broken world nothing meets; the wait tells why.
  std::shared_ptr<Meeting> arrive(int rank, uint64_t number, CollectiveCall call);
  /// Throws the failure; after `timeout` there is one.
  void wait(int rank, const Meeting& meeting, std::chrono::milliseconds timeout);
  /// Breaks the world unless the meeting is over. After it nobody touches the meeting's buffers any more.
  void drop(int rank, const Meeting& meeting);
  void abort(const std::string& reason);
  /// Rank `rank` calls nothing more; its next call would have been `number`. Breaks the world if others wait for it,
  /// now or later.
  void leave(int rank, uint64_t number);
  std::optional<Failure> failure() const;

  /// The world of the ranks' group number `number`, made by the first that asks. Throws ConfigError if a rank asks
  /// for other ranks than the first did.
  std::shared_ptr<LocalWorld> group(int rank, uint64_t number, const std::vector<int>& ranks);

 private:
  struct Group {
    std::vector<int> ranks;
    std::shared_ptr<LocalWorld> world;
  };

  void finish(Meeting& meeting, std::unique_lock<std::mutex>& lock);
  void break_with(Failure failure);
  void require_company(const Meeting& meeting);
  void give_up(int rank, const Meeting& meeting, std::chrono::milliseconds timeout);

  const int size_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Failure> failure_;
  std::map<uint64_t, std::shared_ptr<Meeting>> meetings_;  // not yet complete
  std::map<uint64_t, Group> groups_;
  std::map<int, uint64_t> left_;  // rank -> the number of the call that it did not make
};

}  // namespace fusedbun::comm
