#pragma once
// Heartbeat::Loop: the thread behind a Heartbeat and what it shares with callers. Sockets are the thread's own and are used
// without the lock; every wakeup reads each of those that have something once, so that it ends.
//
// Thread safety: public members from any thread; private ones say who touches them.
#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "fusedbun/dist/health/connection.h"
#include "fusedbun/dist/health/heartbeat.h"
#include "fusedbun/dist/health/proof.h"

namespace fusedbun::health {

class Heartbeat::Loop {
 public:
  /// `peers`: connections that are there already, by rank. `infos`: of the ranks known already.
  Loop(HeartbeatOptions options, Descriptor listener, const Token& token,
       std::map<int, Connection> peers, const std::vector<RankInfo>& infos);
  ~Loop();
  Loop(const Loop&) = delete;  // owns a thread

  void watch();
  void leave() noexcept;
  void fail(int code, const std::string& reason) noexcept;
  std::optional<plan::LostRank> wait_lost(std::chrono::milliseconds timeout);
  std::vector<plan::RankStatus> ranks();
  std::vector<DumpAnswer> dump(const std::string& folder, int64_t timeout_ms);
  void exit_all(int code, const std::string& reason);

 private:
  /// A connection that has not proven that it knows the token.
  struct UnauthenticatedPeer {
    Connection connection;
    Challenge challenge;
    int64_t since_us = 0;
  };
  struct Received {
    int rank = 0;
    Frame frame;
  };
  /// Answers of dumps from threads that may outlive this object, while a disk hangs.
  struct Outbox {
    Descriptor wake;
    std::mutex mutex;
    std::vector<OrderAnswer> answers;
  };

  void run();
  /// Until something comes, at most until then; takes in what has come.
  void wait(int64_t until_us);
  /// Of this process's own wishes none waits for it.
  void pause_between_looks(int64_t until_us);
  void send_beat(int64_t now_us);
  bool act_on_loss(int64_t now_us);
  void send_goodbyes();
  void take_all(const std::vector<Received>& received, int64_t now_us);
  void accept_connections(int64_t now_us);
  /// True if the connection has had its chance: it is another rank's now, or goes.
  bool authenticate(UnauthenticatedPeer& peer);
  void stop_listening_if_complete();
  void give_orders();
  void obey(const Order& order);
  void start_dump(const Order& order);
  void send_answers();
  /// Rank 0 has told all others to end: waits for them a little.
  void wait_for_ends();

  // With mutex_ held:
  void take(int rank, const Frame& frame, int64_t now_us);
  void record_loss(plan::LostRank lost);
  plan::RankStatus status_of(int rank) const;

  const HeartbeatOptions options_;
  const Token token_;
  const std::shared_ptr<Outbox> outbox_ = std::make_shared<Outbox>();

  // The thread's own.
  Descriptor listener_;
  int64_t accept_again_us_ = 0;  ///< no descriptor was left: nobody is accepted before
  std::vector<UnauthenticatedPeer> unauthenticated_;  ///< the oldest first
  std::map<int, Connection> peers_;
  std::vector<pollfd> waits_;
  int64_t looked_at_us_ = 0;
  int64_t told_at_us_ = 0;  ///< when on_lost was called; 0: not yet
  bool overdue_told_ = false;
  std::thread describing_;  ///< a dump
  std::atomic<bool> is_describing_ = false;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  plan::RankWatch watch_;
  bool watching_ = false;
  std::set<int> disconnected_;   ///< ranks that had joined; only before watch()
  std::vector<RankInfo> infos_;  ///< [rank]
  std::vector<Beat> beats_;      ///< [rank] the last
  std::optional<plan::LostRank> lost_;
  bool failed_ = false;  ///< lost_ is this rank's own failure, which it knows of
  bool leaving_ = false;
  std::vector<Order> orders_;  ///< to be given
  uint64_t dump_number_ = 0;
  std::vector<DumpAnswer> dump_answers_;  ///< [rank] of the newest dump

  std::mutex dump_mutex_;   // one caller of dump() at a time
  std::mutex leave_mutex_;  // one caller of leave() joins
  std::thread thread_;
};

}  // namespace fusedbun::health
