#include "fusedbun/dist/health/heartbeat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>

#include "fusedbun/dist/health/proof.h"
#include "ranks.h"

namespace fusedbun::health {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;
using Cause = plan::LostRank::Cause;

constexpr plan::HealthLimits kQuick{
    .heartbeat_us = 10'000, .lost_us = 300'000, .stall_us = 100'000};

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
    ranks.watch();
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
  ranks.watch();
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

// Rank 0 is a thread of the test, and dies without a word.
TEST(Heartbeat, ALostRankZeroIsNamedByTheOthers) {
  ListeningSocket listener = listen_on_free_port(true);
  const Token token = random_token();
  std::optional<Connection> rank_0;
  std::thread welcoming([&] {
    const Challenge challenge{random_nonce()};
    EXPECT_TRUE(soon([&] {
      if (!rank_0) {
        Accepted accepted = accept_from(listener.descriptor);
        if (!accepted.descriptor.is_open()) return false;
        rank_0.emplace(std::move(accepted.descriptor));
        rank_0->send(challenge);
      }
      for (const Frame& frame : rank_0->receive(kHelloBytes)) {
        const Hello& hello = std::get<Hello>(frame);
        rank_0->send(Welcome{proof_of(token, Side::listening, challenge, hello)});
        return true;
      }
      return false;
    }));
  });
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
                   {{"127.0.0.1"}, listener.port, token, {.pid = 77, .host = "there"}}, 10s);
  welcoming.join();
  rank_1.watch();
  rank_0.reset();
  ASSERT_TRUE(soon([&] { return called.load(); }));
  EXPECT_THAT(sentence_of(told), HasSubstr("rank 0 (pid 77 on there) is lost: its process ended"));
}

TEST(Heartbeat, BeforeWatchNobodyIsLost) {
  Ranks ranks(3, kQuick);
  { Connection comes_and_goes = ranks.bare(1); }
  EXPECT_EQ(ranks[0].wait_lost(400ms), std::nullopt) << "it may come again, and rank 2 come late";
  ranks.start(1);
  ranks.start(2);
  ranks.watch();
  EXPECT_TRUE(ranks.all_met());
  EXPECT_EQ(ranks[0].wait_lost(400ms), std::nullopt);
}

TEST(Heartbeat, OneThatWentBeforeWatchIsLostFromThenOn) {
  Ranks ranks(3, kPatient);
  ranks.start(1);
  { Connection victim = ranks.bare(2); }
  EXPECT_EQ(ranks[0].wait_lost(100ms), std::nullopt);
  ranks.watch();
  EXPECT_EQ(ranks.told_soon(1).rank, 2);
  EXPECT_EQ(ranks.told_soon(1).cause, Cause::gone);
}

TEST(Heartbeat, AJobWhoseRanksLiveButDoNotMoveIsHung) {
  constexpr plan::HealthLimits kHangs{
      .heartbeat_us = 10'000, .lost_us = 60'000'000, .stall_us = 60'000'000, .hang_us = 300'000};
  Ranks ranks(3, kHangs);
  ranks.start_all();
  for (int64_t step = 1; step <= 40; ++step) {  // one rank that moves is enough
    ranks.stand(2, {step, plan::Phase::update, 0});
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(ranks[0].lost(), std::nullopt);
  ranks.stand(0, {7, plan::Phase::all_gather, 1});
  ranks.stand(1, {7, plan::Phase::all_gather, 1});
  ranks.stand(2, {7, plan::Phase::forward_backward});
  for (int rank = 0; rank < 3; ++rank) {
    const plan::LostRank lost = ranks.told_soon(rank);
    EXPECT_EQ(lost.cause, Cause::hung);
    EXPECT_EQ(lost.rank, plan::LostRank::kNone);
    EXPECT_GE(lost.silence_us, kHangs.hang_us);
    EXPECT_EQ(lost.reason,
              "ranks 0-1 in all_gather of bucket 1, job step 7; rank 2 in forward_backward, "
              "job step 7");
  }
}

TEST(Heartbeat, AProcessThatDoesNotLeaveIsReminded) {
  Ranks ranks(2, kPatient);
  {
    Connection victim = ranks.bare(1);
    ranks.watch();
    ASSERT_TRUE(ranks.all_met());
  }
  ranks.told_soon(0);
  EXPECT_TRUE(soon([&] { return ranks.overdue == 1; }));
  EXPECT_EQ(ranks.told(0).size(), 1U);
}

}  // namespace
}  // namespace fusedbun::health
