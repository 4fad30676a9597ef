#include "fusedbun/dist/health/heartbeat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <future>
#include <iostream>
#include <optional>
#include <set>
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

// ---- orders --------------------------------------------------------------------------------------

TEST(Orders, EachRankWritesWhatItIsDoingAndSaysWhyItCannot) {
  Ranks ranks(4, kPatient);
  std::mutex mutex;
  std::set<std::string> written;
  *ranks.write_dump = [&](const std::string& folder, const std::string& text) -> std::string {
    if (text == "rank 2") return "the disk is full";
    const std::lock_guard lock(mutex);
    written.insert(folder + ": " + text);
    return {};
  };
  ranks.start(1);
  ranks.start(2);
  const Connection silent = ranks.bare(3);
  ranks.watch();
  ASSERT_TRUE(ranks.all_met());
  const auto answers = ranks[0].dump("/diagnostics", 500);
  EXPECT_THAT(written, ::testing::ElementsAre("/diagnostics: rank 0", "/diagnostics: rank 1"));
  ASSERT_EQ(answers.size(), 4U);
  for (const int rank : {0, 1}) {
    EXPECT_TRUE(answers[rank].has_answered) << rank;
    EXPECT_EQ(answers[rank].problem, "") << rank;
  }
  EXPECT_EQ(answers[2].problem, "the disk is full");
  EXPECT_FALSE(answers[3].has_answered) << "it reads nothing";
}

TEST(Orders, ADiskThatHangsHoldsUpNeitherTheBeatsNorTheNextDumpNorTheEnd) {
  std::promise<void> mended;
  {
    Ranks ranks(2, kQuick);
    *ranks.write_dump = [hangs = mended.get_future().share()](const std::string& folder,
                                                              const std::string& text) {
      if (folder == "/hung" && text == "rank 1") hangs.wait();
      return std::string();
    };
    ranks.start_all();
    ASSERT_TRUE(ranks.all_met());
    EXPECT_FALSE(ranks[0].dump("/hung", 400)[1].has_answered);
    EXPECT_EQ(ranks[0].lost(), std::nullopt) << "400 ms are longer than the lost limit";
    EXPECT_TRUE(ranks[0].dump("/whole", 10'000)[1].has_answered);
  }
  mended.set_value();
}

TEST(Orders, AFolderWithTooLongANameIsRefusedAndNotCut) {
  Ranks ranks(2, kPatient);
  ranks.start_all();
  for (const auto& answer : ranks[0].dump(std::string(Order::kTextBytesMax + 1, 'x'), 10'000))
    EXPECT_THAT(answer.problem, HasSubstr("too long"));
}

// In a process of its own: it ends.
TEST(OrdersDeathTest, AllEndAndTheOneThatOrdersItLast) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto order = [] {
    std::atomic<int> ended = 0;
    const auto rank = [&](int number) {
      return HeartbeatOptions{
          .me = Ranks::info(number),
          .world_size = 3,
          .limits = kPatient,
          .beat = [] { return Beat{}; },
          .on_lost =
              [](const plan::LostRank& lost) { std::cerr << plan::sentence_of(lost) << std::endl; },
          .exit =
              [&ended, number](int code, const std::string& reason) {
                std::cerr << reason + ' ' + std::to_string(number) + '\n' << std::flush;
                if (number == 0) ::_exit(code + (ended == 2 ? 0 : 100));
                ++ended;
                for (;;) std::this_thread::sleep_for(1h);
              }};
    };
    ListeningSocket listener = listen_on_free_port(/*loopback_only=*/true);
    const Rendezvous rendezvous{{"127.0.0.1"}, listener.port, random_token(), Ranks::info(0)};
    Heartbeat first(rank(0), std::move(listener), rendezvous.token);
    Heartbeat second(rank(1), rendezvous, 10s);
    Heartbeat third(rank(2), rendezvous, 10s);
    for (Heartbeat* each : {&first, &second, &third}) each->watch();
    first.exit_all(75, "out of time");
    std::this_thread::sleep_for(20s);
  };
  EXPECT_EXIT(order(), testing::ExitedWithCode(75),
              "out of time [12]\nout of time [12]\nout of time 0");
}

}  // namespace
}  // namespace fusedbun::health
