#pragma once
// Heartbeat::Loop: the thread behind a Heartbeat and what it shares with callers.
//
// Thread safety: public members from any thread; private ones say who touches them.
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "fusedbun/dist/health/connection.h"
#include "fusedbun/dist/health/heartbeat.h"

namespace fusedbun::health {

class Heartbeat::Loop {
 public:
  /// `peers`: connections that are there already, by rank. `cards`: of the ranks known already.
  Loop(HeartbeatOptions options, Descriptor listener, const Token& token,
       std::map<int, Connection> peers, const std::vector<RankCard>& cards);
  ~Loop();
  Loop(const Loop&) = delete;  // owns a thread

  void leave() noexcept;
  void fail(int code, const std::string& reason) noexcept;
  std::optional<plan::LostRank> wait_lost(std::chrono::milliseconds timeout);
  std::vector<plan::RankStatus> ranks();

 private:
  /// A connection that has not said who it is.
  struct Stranger {
    Connection connection;
    int64_t since_us = 0;
  };

  void run();
  void wait(int64_t until_us);
  bool has_room_for_strangers() const;
  bool act_on_loss(int64_t now_us);
  void say_farewell();
  // With mutex_ held:
  void send_beats(int64_t now_us);
  void accept_strangers(int64_t now_us);
  void meet_strangers(int64_t now_us);
  void receive(int64_t now_us);
  void take(int rank, const Frame& frame, int64_t now_us);
  void adopt(plan::LostRank lost);
  plan::RankStatus status_of(int rank) const;

  const HeartbeatOptions options_;
  const Descriptor listener_;
  const Token token_;
  const Descriptor wake_;

  // The thread's own.
  std::vector<Stranger> strangers_;
  std::map<int, Connection> peers_;
  int64_t told_at_us_ = 0;  ///< when on_lost was called; 0: not yet
  bool overdue_told_ = false;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  plan::RankWatch watch_;
  std::vector<RankCard> cards_;  ///< [rank]
  std::vector<Beat> beats_;      ///< [rank] the last
  std::optional<plan::LostRank> lost_;
  bool failed_ = false;  ///< lost_ is this rank's own failure, which it knows of
  bool leaving_ = false;

  std::mutex leave_mutex_;  // one caller of leave() joins
  std::thread thread_;
};

}  // namespace fusedbun::health
