// Ranks as threads of one process; a rank that dies or stops is a bare connection that the test closes or neglects.
#include "fusedbun/dist/health/heartbeat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/health/connection.h"

namespace fusedbun::health {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Cause = plan::LostRank::Cause;

constexpr plan::HealthLimits kQuick{
    .heartbeat_us = 10'000, .lost_us = 300'000, .stall_us = 100'000};
/// Nothing in a test is silent for so long.
constexpr plan::HealthLimits kPatient{
    .heartbeat_us = 10'000, .lost_us = 60'000'000, .stall_us = 60'000'000};

template <class Condition>
bool soon(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

/// The ranks of one job: those that were started, on one listener.
class Ranks {
 public:
  Ranks(int world_size, const plan::HealthLimits& limits)
      : world_size_(world_size), limits_(limits), beats_(world_size), told_(world_size) {
    ListeningSocket listener = listen_on_free_port(/*loopback_only=*/true);
    invitation_ = {"127.0.0.1", listener.port, random_token(), card(0)};
    ranks_.resize(world_size);
    ranks_[0] = std::make_unique<Heartbeat>(options(0), std::move(listener), invitation_.token);
  }

  void start(int rank) {
    ranks_[rank] = std::make_unique<Heartbeat>(options(rank), invitation_, 10s);
  }
  void start_all() {
    for (int rank = 1; rank < world_size_; ++rank) start(rank);
  }
  /// Only says hello, with this token, and sends one beat.
  Connection bare(int rank, const Token& token) {
    Connection connection(connect_to("127.0.0.1", invitation_.port, 10s));
    connection.send(Hello{.token = token, .card = card(rank)});
    connection.send(Beat{{5, plan::Phase::reduce_scatter, 3}, 0, 0});
    return connection;
  }
  Connection bare(int rank) { return bare(rank, invitation_.token); }

  Heartbeat& operator[](int rank) { return *ranks_[rank]; }
  void stop(int rank) { ranks_[rank].reset(); }
  const Invitation& invitation() const { return invitation_; }

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
  std::atomic<int> overdue = 0;

 private:
  static RankCard card(int rank) {
    return {.rank = rank, .local_rank = rank, .pid = 1000 + rank, .host = "here", .device = "cpu"};
  }
  HeartbeatOptions options(int rank) {
    return {.me = card(rank),
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
            .leave_us = 50'000};
  }

  int world_size_;
  plan::HealthLimits limits_;
  Invitation invitation_;
  std::mutex mutex_;
  std::vector<Beat> beats_;
  std::vector<std::vector<plan::LostRank>> told_;
  std::vector<std::unique_ptr<Heartbeat>> ranks_;  // the last member: their threads use the others
};

TEST(Heartbeat, RankZeroKnowsWhereAllRanksStand) {
  Ranks ranks(3, kPatient);
  ranks.start_all();
  ranks.stand(2, {7, plan::Phase::all_gather, 1});
  ASSERT_TRUE(ranks.all_met());
  ASSERT_TRUE(soon([&] { return ranks[0].ranks()[2].bucket == 1; }));
  const auto known = ranks[0].ranks();
  ASSERT_EQ(known.size(), 3U);
  EXPECT_EQ(known[2].pid, 1002);
  EXPECT_EQ(known[2].host, "here");
  EXPECT_EQ(known[2].job_step, 7);
  EXPECT_EQ(known[2].phase, plan::Phase::all_gather);
  for (const plan::RankStatus& rank : known) EXPECT_EQ(rank.liveness, plan::Liveness::alive);
}

TEST(Heartbeat, AloneThereIsNobodyToLose) {
  std::atomic<bool> lost = false;
  Heartbeat alone({.me = {.pid = 1, .host = "here"},
                   .limits = kQuick,
                   .beat =
                       [] {
                         return Beat{{3, plan::Phase::update}, 0, 0};
                       },
                   .on_lost = [&](const plan::LostRank&) { lost = true; }},
                  ListeningSocket(), Token());
  EXPECT_EQ(alone.ranks().at(0).job_step, 3);
  EXPECT_EQ(alone.wait_lost(400ms), std::nullopt);
  EXPECT_FALSE(lost);
}

TEST(Heartbeat, WhoLeavesInPeaceIsNotLost) {
  Ranks ranks(3, kQuick);
  ranks.start_all();
  ASSERT_TRUE(ranks.all_met());
  ranks.stop(2);
  EXPECT_EQ(ranks[0].wait_lost(400ms), std::nullopt);
  ranks.stop(0);
  EXPECT_EQ(ranks[1].wait_lost(400ms), std::nullopt);
}

TEST(Heartbeat, ABrokenConnectionIsNamedOnAllRanksAtOnce) {
  Ranks ranks(3, kPatient);
  ranks.start(1);
  {
    Connection victim = ranks.bare(2);
    ASSERT_TRUE(ranks.all_met());
  }
  for (const int rank : {0, 1}) {
    const plan::LostRank lost = ranks.told_soon(rank);
    EXPECT_EQ(lost.rank, 2);
    EXPECT_EQ(lost.cause, Cause::gone);
    EXPECT_EQ(lost.pid, 1002);
    EXPECT_EQ(lost.host, "here");
    EXPECT_EQ(lost.last, (plan::RankPosition{5, plan::Phase::reduce_scatter, 3}));
    EXPECT_EQ(ranks[rank].lost(), lost);
  }
  EXPECT_EQ(ranks[0].ranks()[2].liveness, plan::Liveness::lost);
}

TEST(Heartbeat, ASilentRankIsLateThenLostAndHearsOfItItself) {
  Ranks ranks(3, kQuick);
  ranks.start(1);
  Connection victim = ranks.bare(2);
  ASSERT_TRUE(ranks.all_met());
  EXPECT_TRUE(soon([&] { return ranks[0].ranks()[2].liveness == plan::Liveness::late; }));
  for (const int rank : {0, 1}) {
    EXPECT_EQ(ranks.told_soon(rank).rank, 2);
    EXPECT_EQ(ranks.told_soon(rank).cause, Cause::silent);
    EXPECT_GE(ranks.told_soon(rank).silence_us, kQuick.lost_us);
  }
  plan::LostRank told{.rank = -1};
  EXPECT_TRUE(soon([&] {
    for (const Frame& frame : victim.receive()) {
      if (const auto* lost = std::get_if<plan::LostRank>(&frame)) told = *lost;
    }
    return told.rank >= 0;
  }));
  EXPECT_EQ(told, ranks.told_soon(0));
}

TEST(Heartbeat, RanksWithoutStepsAreStalled) {
  Ranks ranks(2, kQuick);
  ranks.start_all();
  ASSERT_TRUE(ranks.all_met());
  for (int64_t step = 1; step <= 3; ++step) {
    ranks.stand(1, {step, plan::Phase::update, 0});
    ASSERT_TRUE(soon([&] { return ranks[0].ranks()[1].job_step == step; }));
  }
  EXPECT_TRUE(soon([&] { return ranks[0].ranks()[1].liveness == plan::Liveness::stalled; }));
  ranks.stand(1, {4, plan::Phase::update, 0});
  EXPECT_TRUE(soon([&] { return ranks[0].ranks()[1].liveness == plan::Liveness::alive; }));
  EXPECT_EQ(ranks[0].lost(), std::nullopt);
}

TEST(Heartbeat, ARankThatFailsSaysWhyBeforeItGoes) {
  for (const int failing : {0, 1}) {
    Ranks ranks(3, kPatient);
    ranks.start_all();
    ASSERT_TRUE(ranks.all_met());
    ranks.stand(failing, {9, plan::Phase::agreement});
    ranks[failing].fail(74, "the disk is full");
    ranks.stop(failing);
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == failing) continue;
      const plan::LostRank lost = ranks.told_soon(rank);
      EXPECT_EQ(lost.rank, failing);
      EXPECT_EQ(lost.cause, Cause::failed);
      EXPECT_EQ(lost.code, 74);
      EXPECT_EQ(lost.reason, "the disk is full");
      EXPECT_EQ(lost.pid, 1000 + failing);
      EXPECT_EQ(lost.last.job_step, 9);
    }
    EXPECT_TRUE(ranks.told(failing).empty()) << "it knows";
  }
}

TEST(Heartbeat, ALostRankZeroIsNamedByTheOthers) {
  ListeningSocket listener = listen_on_free_port(true);
  std::optional<Connection> rank_0;
  plan::LostRank told{.rank = -1};
  std::atomic<bool> called = false;
  Heartbeat rank_1({.me = {.rank = 1},
                    .world_size = 2,
                    .limits = kPatient,
                    .beat = [] { return Beat{}; },
                    .on_lost =
                        [&](const plan::LostRank& lost) {
                          told = lost;
                          called = true;
                        }},
                   {"127.0.0.1", listener.port, {}, {.pid = 77, .host = "there"}}, 10s);
  ASSERT_TRUE(soon([&] {
    if (!rank_0) rank_0.emplace(accept_from(listener.descriptor));
    if (!rank_0->is_open()) rank_0.reset();
    return rank_0 && !rank_0->receive().empty();
  }));
  rank_0.reset();
  ASSERT_TRUE(soon([&] { return called.load(); }));
  EXPECT_THAT(sentence_of(told), HasSubstr("rank 0 (pid 77 on there) is lost: its process ended"));
}

TEST(Heartbeat, OnlyWhoKnowsTheTokenIsHeard) {
  Ranks ranks(2, kPatient);
  Token wrong = ranks.invitation().token;
  wrong[15] ^= 1;
  Connection stranger = ranks.bare(1, wrong);
  EXPECT_TRUE(soon([&] {
    stranger.receive();
    return !stranger.is_open();
  }));
  Connection impostor = ranks.bare(0);  // rank 0 is the one that listens
  EXPECT_TRUE(soon([&] {
    impostor.receive();
    return !impostor.is_open();
  }));
  EXPECT_FALSE(ranks[0].ranks()[1].heartbeat_age_ms);
  ranks.start(1);
  EXPECT_TRUE(ranks.all_met());
  EXPECT_EQ(ranks[0].lost(), std::nullopt);
}

TEST(Heartbeat, AProcessThatDoesNotLeaveIsReminded) {
  Ranks ranks(2, kPatient);
  {
    Connection victim = ranks.bare(1);
    ASSERT_TRUE(ranks.all_met());
  }
  ranks.told_soon(0);
  EXPECT_TRUE(soon([&] { return ranks.overdue == 1; }));
  EXPECT_EQ(ranks.told(0).size(), 1U);
}

TEST(Heartbeat, WhereNobodyListensThereIsAnErrorInTime) {
  ListeningSocket gone = listen_on_free_port(true);
  gone.descriptor.close();
  EXPECT_THROW(connect_to("127.0.0.1", gone.port, 1s), UnavailableError);
  EXPECT_THROW(connect_to("no-such-host.invalid", 1, 1s), UnavailableError);
}

}  // namespace
}  // namespace fusedbun::health
