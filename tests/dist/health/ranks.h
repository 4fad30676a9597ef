#pragma once
// Ranks: the ranks of one job as threads of one process, on one listener; those that were started. A rank that dies or stops
// is a bare connection that the test closes or neglects.
//
// Thread safety: none, but what the ranks' callbacks write is guarded.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/dist/health/heartbeat.h"

namespace fusedbun::health {

/// Nothing in a test is silent for so long.
inline constexpr plan::HealthLimits kPatient{
    .heartbeat_us = 10'000, .lost_us = 60'000'000, .stall_us = 60'000'000};

/// Waits for it; false if it does not come.
template <class Condition>
bool soon(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

class Ranks {
 public:
  Ranks(int world_size, const plan::HealthLimits& limits)
      : world_size_(world_size), limits_(limits), beats_(world_size), told_(world_size) {
    ListeningSocket listener = listen_on_free_port(/*loopback_only=*/true);
    rendezvous_ = {{"127.0.0.1"}, listener.port, random_token(), info(0)};
    ranks_.resize(world_size);
    ranks_[0] = std::make_unique<Heartbeat>(options(0), std::move(listener), rendezvous_.token);
  }

  void start(int rank) {
    ranks_[rank] =
        std::make_unique<Heartbeat>(options(rank), rendezvous_, std::chrono::seconds(10));
  }
  void start_all() {
    for (int rank = 1; rank < world_size_; ++rank) start(rank);
    watch();
  }
  void watch() {
    for (const auto& rank : ranks_) {
      if (rank) rank->watch();
    }
  }
  /// Joins and sends one beat.
  Connection bare(int rank) {
    Connection connection = join(rendezvous_, info(rank), std::chrono::seconds(10));
    connection.send(Beat{{5, plan::Phase::reduce_scatter, 3}, 0, 0});
    return connection;
  }

  Heartbeat& operator[](int rank) { return *ranks_[rank]; }
  void stop(int rank) { ranks_[rank].reset(); }
  const Rendezvous& rendezvous() const { return rendezvous_; }

  void stand(int rank, const plan::RankPosition& position) {
    const std::lock_guard lock(mutex_);
    beats_[rank].position = position;
  }
  /// What on_lost of this rank was called with.
  std::vector<plan::LostRank> told(int rank) {
    const std::lock_guard lock(mutex_);
    return told_[rank];
  }
  plan::LostRank told_soon(int rank) {
    EXPECT_TRUE(soon([&] { return !told(rank).empty(); })) << "rank " << rank << " hears nothing";
    return told(rank).empty() ? plan::LostRank{.rank = -1} : told(rank).front();
  }
  bool all_met() {
    return soon([&] {
      for (const plan::RankStatus& rank : ranks_[0]->ranks()) {
        if (!rank.heartbeat_age_ms) return false;
      }
      return true;
    });
  }
  static RankInfo info(int rank) {
    return {.rank = rank, .local_rank = rank, .pid = 1000 + rank, .host = "here", .device = "cpu"};
  }
  std::atomic<int> overdue = 0;
  /// What ranks do with a dump: returns why it cannot be written. Shared, for it may be called when this object is gone.
  using WriteDump = std::function<std::string(const std::string& folder, const std::string& text)>;
  std::shared_ptr<WriteDump> write_dump = std::make_shared<WriteDump>(
      [](const std::string&, const std::string&) { return std::string(); });

 private:
  HeartbeatOptions options(int rank) {
    return {.me = info(rank),
            .world_size = world_size_,
            .limits = limits_,
            .beat =
                [this, rank] {
                  const std::lock_guard lock(mutex_);
                  return beats_[rank];
                },
            .on_lost =
                [this, rank](const plan::LostRank& lost) {
                  const std::lock_guard lock(mutex_);
                  told_[rank].push_back(lost);
                },
            .on_overdue = [this] { ++overdue; },
            .leave_us = 50'000,
            .describe = [rank] { return "rank " + std::to_string(rank); },
            .write_dump = [write = write_dump](
                              const std::string& folder,
                              const std::string& text) { return (*write)(folder, text); }};
  }

  int world_size_;
  plan::HealthLimits limits_;
  Rendezvous rendezvous_;
  std::mutex mutex_;
  std::vector<Beat> beats_;
  std::vector<std::vector<plan::LostRank>> told_;
  std::vector<std::unique_ptr<Heartbeat>> ranks_;  // the last member: their threads use the others
};

}  // namespace fusedbun::health
