#pragma once
// Heartbeat: the ranks watch over one another on a connection of their own, so that a rank that died, stopped or
// failed is named on all the others while the transport still waits, and a job whose ranks all live but wait for one
// another for ever is ended. Rank 0 hears all ranks, the others hear rank 0; what rank 0 finds lost, it tells to all. A
// thread of its own sends a sign of life per interval and decides with plan::RankWatch.
//
// Invariants: 1. on_lost is called at most once, and never after leave(). 2. A rank that called leave() is never
// called lost, nor is one before watch(). 3. A process that ends without a word is noticed at once, by its closed
// connection. 4. Callbacks run on the heartbeat's thread, without its lock. 5. Of a connection that has not proven that
// it knows the token, kHelloBytes are read; nothing that strangers send or leave unsent delays a beat. 6. Nobody can
// connect any more once all ranks have.
//
// Thread safety: all members may be called from any thread.
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/health/frame.h"
#include "fusedbun/dist/health/join.h"
#include "fusedbun/dist/health/socket.h"
#include "fusedbun/dist/plan/rank_orders.h"
#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/rank_watch.h"

namespace fusedbun::health {

struct HeartbeatOptions {
  RankInfo me;
  int world_size = 1;
  plan::HealthLimits limits = {};
  /// What this rank's signs of life say; asked once per interval.
  std::function<Beat()> beat;
  /// A rank is lost, perhaps this one: the others found it silent, and it wakes up. Or all hang. The job cannot go on.
  std::function<void(const plan::LostRank&)> on_lost;
  /// This process has not left `leave_us` after on_lost, or after fail().
  std::function<void()> on_overdue = [] {};
  int64_t leave_us = 10'000'000;

  // The orders of plan::RankOrders, each carried out on every rank.
  /// What this rank is doing, in words. Takes at most a few seconds; called on a thread of its own.
  std::function<std::string()> describe = [] { return std::string(); };
  /// Writes that to a folder. Returns why it could not, or nothing. On a thread that leave() does not wait for, since a disk may hang: it
  /// uses nothing of the caller's that may be gone by then.
  std::function<std::string(const std::string& folder, const std::string& text)> write_dump =
      [](const std::string&, const std::string&) { return std::string(); };
  /// Ends this process.
  std::function<void(int code, const std::string& reason)> exit = [](int, const std::string&) {};
  /// Rank 0: another rank was told to end and has not (it is stopped).
  std::function<void(const RankInfo&)> end_forcibly = [](const RankInfo&) {};
};

class Heartbeat final : public plan::RankDirectory, public plan::RankOrders {
 public:
  /// Rank 0: the others may join from now on. `listener` may be closed when there are none.
  Heartbeat(HeartbeatOptions options, ListeningSocket listener, const Token& token);
  /// Another rank: joins rank 0. Throws UnavailableError when it cannot within `budget`.
  Heartbeat(HeartbeatOptions options, const Rendezvous& rendezvous,
            std::chrono::milliseconds budget);
  ~Heartbeat() override;                 ///< leave()
  Heartbeat(const Heartbeat&) = delete;  // owns a thread

  /// Every rank has joined: from now on silence and broken connections are losses.
  void watch();
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

  // Rank 0's. One dump at a time; the next caller waits for its turn.
  std::vector<DumpAnswer> dump(const std::string& folder, int64_t timeout_ms) override;
  void exit_all(int code, const std::string& reason) override;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace fusedbun::health
