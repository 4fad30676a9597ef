#pragma once
// Heartbeat: the ranks watch over one another on a connection of their own, so that a rank that died, stopped or
// failed is named on all the others while the transport still waits. Rank 0 hears all ranks, the others hear rank 0;
// what rank 0 finds lost, it tells to all. A thread of its own sends a sign of life per interval and decides with
// plan::RankWatch.
//
// Invariants: 1. on_lost is called at most once, and never after leave(). 2. A rank that called leave() is never
// called lost. 3. A process that ends without a word is noticed at once, by its closed connection. 4. Callbacks run
// on the heartbeat's thread, without its lock.
//
// Thread safety: all members may be called from any thread.
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/health/frame.h"
#include "fusedbun/dist/health/socket.h"
#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/rank_watch.h"

namespace fusedbun::health {

struct HeartbeatOptions {
  RankCard me;
  int world_size = 1;
  plan::HealthLimits limits = {};
  /// What this rank's signs of life say; asked once per interval.
  std::function<Beat()> beat;
  /// A rank is lost, perhaps this one: the others found it silent, and it wakes up. The job cannot go on.
  std::function<void(const plan::LostRank&)> on_lost;
  /// This process has not left `leave_us` after on_lost.
  std::function<void()> on_overdue = [] {};
  int64_t leave_us = 10'000'000;
};

/// How the other ranks find rank 0.
struct Invitation {
  std::string host;
  uint16_t port = 0;
  Token token = {};
  RankCard rank_0;
};
Token random_token();

class Heartbeat final : public plan::RankDirectory {
 public:
  /// Rank 0: watches over all others from now on. `listener` may be closed when there are none.
  Heartbeat(HeartbeatOptions options, ListeningSocket listener, const Token& token);
  /// Another rank: connects. Throws UnavailableError.
  Heartbeat(HeartbeatOptions options, const Invitation& invitation,
            std::chrono::milliseconds timeout);
  ~Heartbeat() override;                 ///< leave()
  Heartbeat(const Heartbeat&) = delete;  // owns a thread

  /// This rank needs the others no more: says so to them, and ends the thread. After fail() the others hear of that
  /// instead.
  void leave() noexcept;
  /// This rank fails: the others are told.
  void fail(int code, const std::string& reason) noexcept;

  std::optional<plan::LostRank> lost() const;
  /// The same, waiting for it at most so long.
  std::optional<plan::LostRank> wait_lost(std::chrono::milliseconds timeout) const;
  /// On rank 0 all ranks; elsewhere what this rank knows.
  std::vector<plan::RankStatus> ranks() const override;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace fusedbun::health
