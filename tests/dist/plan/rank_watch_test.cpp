#include "fusedbun/dist/plan/rank_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

using ::testing::HasSubstr;
using Cause = LostRank::Cause;

/// Late after 30, lost after 100, stalled after 50.
constexpr HealthLimits kLimits{.heartbeat_us = 10, .lost_us = 100, .stall_us = 50};

TEST(Liveness, TheTable) {
  struct Row {
    RankSigns signs;
    Liveness expected;
  };
  const Row table[] = {
      {{}, Liveness::alive},
      {{.silence_us = 29}, Liveness::alive},
      {{.silence_us = 30}, Liveness::late},
      {{.silence_us = 99}, Liveness::late},
      {{.silence_us = 100}, Liveness::lost},
      {{.has_gone = true}, Liveness::lost},
      {{.is_stalled = true}, Liveness::stalled},
      {{.silence_us = 30, .is_stalled = true}, Liveness::late},  // why it stalls is known
      {{.silence_us = 100, .is_stalled = true}, Liveness::lost},
      {{.silence_us = 1000, .has_left = true}, Liveness::alive},
      {{.has_gone = true, .has_left = true}, Liveness::alive},  // who leaves closes its connection
      {{.has_left = true, .is_stalled = true}, Liveness::alive},
  };
  for (const Row& row : table) {
    EXPECT_EQ(liveness_of(row.signs, kLimits), row.expected) << (&row - table);
  }
}

TEST(HealthLimits, TheImpossibleIsRefusedByName) {
  EXPECT_NO_THROW(validate({}));
  EXPECT_NO_THROW(validate(kLimits));
  const auto refusal = [](const HealthLimits& limits) -> std::string {
    try {
      validate(limits);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(refusal({.heartbeat_us = 0}), HasSubstr("--heartbeat"));
  EXPECT_THAT(refusal({.stall_us = -1}), HasSubstr("--stall-timeout"));
  EXPECT_THAT(refusal({.hang_us = -1}), HasSubstr("--hang-timeout"));
  EXPECT_EQ(refusal({.hang_us = 0}), "accepted") << "never";
  EXPECT_THAT(refusal({.heartbeat_us = 10, .lost_us = 30}), HasSubstr("--lost-timeout"));
}

/// Rank 1 of two is watched and heard at 0.
RankWatch watch_of_one() {
  RankWatch watch(2, kLimits, 0);
  watch.expect(1, 0);
  watch.on_heartbeat(1, {7, Phase::update, 2}, 0);
  return watch;
}

TEST(RankWatch, SilenceMakesARankLateThenLost) {
  RankWatch watch = watch_of_one();
  for (int64_t now = 0; now < 30; now += 10) {
    watch.tick(now);
    EXPECT_EQ(watch.liveness(1), Liveness::alive);
  }
  for (int64_t now = 30; now < 100; now += 10) {
    watch.tick(now);
    EXPECT_EQ(watch.liveness(1), Liveness::late) << now;
    EXPECT_FALSE(watch.lost());
  }
  watch.tick(100);
  ASSERT_TRUE(watch.lost());
  EXPECT_EQ(watch.lost()->rank, 1);
  EXPECT_EQ(watch.lost()->cause, Cause::silent);
  EXPECT_EQ(watch.lost()->silence_us, 100);
  EXPECT_EQ(watch.lost()->last, (RankPosition{7, Phase::update, 2}));
}

TEST(RankWatch, ALateHeartbeatMakesItAliveAgain) {
  RankWatch watch = watch_of_one();
  for (int64_t now = 0; now <= 90; now += 10) watch.tick(now);
  EXPECT_EQ(watch.liveness(1), Liveness::late);
  watch.on_heartbeat(1, {7, Phase::update, 2}, 95);
  watch.tick(96);
  EXPECT_EQ(watch.liveness(1), Liveness::alive);
  EXPECT_EQ(watch.silence_us(1), 1);
}

TEST(RankWatch, AWatcherThatSleptAccusesNobody) {
  RankWatch watch = watch_of_one();
  watch.tick(10);
  watch.tick(100'000);
  EXPECT_EQ(watch.liveness(1), Liveness::alive);
  for (int64_t now = 100'010; now <= 100'080; now += 10) watch.tick(now);
  EXPECT_EQ(watch.liveness(1), Liveness::late) << "what it was silent before counts on";
  watch.tick(100'090);
  EXPECT_TRUE(watch.lost());
}

TEST(RankWatch, ABrokenConnectionIsALossAtOnceUnlessItLeftInPeace) {
  RankWatch broken = watch_of_one();
  broken.on_disconnect(1);
  broken.tick(1);
  ASSERT_TRUE(broken.lost());
  EXPECT_EQ(broken.lost()->cause, Cause::gone);

  RankWatch peaceful = watch_of_one();
  peaceful.on_goodbye(1);
  peaceful.on_disconnect(1);
  for (int64_t now = 0; now <= 1000; now += 10) peaceful.tick(now);
  EXPECT_FALSE(peaceful.lost());
}

TEST(RankWatch, OneThatNeverCameIsLost) {
  RankWatch watch(3, kLimits, 0);
  watch.expect(2, 0);
  for (int64_t now = 0; now <= 100; now += 10) watch.tick(now);
  ASSERT_TRUE(watch.lost());
  EXPECT_EQ(watch.lost()->rank, 2);
  EXPECT_FALSE(watch.silence_us(2));
}

TEST(RankWatch, TheFirstLossIsKept) {
  RankWatch watch(3, kLimits, 0);
  watch.expect(1, 0);
  watch.expect(2, 0);
  watch.on_disconnect(2);
  watch.tick(1);
  watch.on_disconnect(1);
  watch.tick(2);
  EXPECT_EQ(watch.lost()->rank, 2);
}

TEST(RankWatch, HeartbeatsWithoutStepsAreAStall) {
  RankWatch watch = watch_of_one();
  int64_t now = 0;
  for (int64_t step = 8; step < 12; ++step) {
    watch.on_heartbeat(1, {step, Phase::update, 0}, now += 10);
    watch.tick(now);
    EXPECT_EQ(watch.liveness(1), Liveness::alive);
  }
  // Ten medians of 10 are longer than the 50 of the limit.
  for (const int64_t end = now + 100; now < end;) {
    watch.on_heartbeat(1, {11, Phase::forward_backward}, now += 10);
    watch.tick(now);
    EXPECT_EQ(watch.liveness(1), Liveness::alive) << now;
  }
  watch.on_heartbeat(1, {11, Phase::forward_backward}, now += 10);
  watch.tick(now);
  EXPECT_EQ(watch.liveness(1), Liveness::stalled);
  watch.on_heartbeat(1, {12, Phase::update, 0}, now += 10);
  watch.tick(now);
  EXPECT_EQ(watch.liveness(1), Liveness::alive);
}

// A rank that has stepped every 10 enters the phase for 1,000 and steps on.
TEST(RankWatch, PhasesThatTakeNoStepsAreNoStall) {
  for (const Phase phase : {Phase::starting, Phase::validate, Phase::save, Phase::idle}) {
    RankWatch watch = watch_of_one();
    int64_t now = 0;
    const auto stands = [&](const RankPosition& position) {
      watch.on_heartbeat(1, position, now += 10);
      watch.tick(now);
      return watch.liveness(1);
    };
    for (int64_t step = 8; step < 12; ++step) stands({step, Phase::update, 0});
    for (int i = 0; i < 100; ++i) EXPECT_EQ(stands({11, phase}), Liveness::alive) << i;
    // The clock goes on where it stood: ten medians of 10 are allowed.
    for (int i = 0; i < 9; ++i) EXPECT_EQ(stands({11, Phase::forward_backward}), Liveness::alive);
    stands({11, Phase::forward_backward});
    EXPECT_EQ(stands({11, Phase::forward_backward}), Liveness::stalled) << name_of(phase);
    EXPECT_EQ(stands({12, Phase::update}), Liveness::alive);
  }
}

TEST(RankWatch, AJobHangsWhenNoRankMoves) {
  constexpr HealthLimits kHangs{.heartbeat_us = 10, .lost_us = 100, .stall_us = 50, .hang_us = 500};
  RankWatch watch(4, kHangs, 0);
  int64_t now = 0;
  RankPosition waits{41, Phase::all_gather, 1};
  RankPosition works{41, Phase::forward_backward};
  const auto beat = [&] {
    now += 10;
    for (const int rank : {0, 2, 3}) watch.on_heartbeat(rank, waits, now);
    watch.on_heartbeat(1, works, now);
    watch.tick(now);
  };
  for (int i = 0; i < 50; ++i) beat();
  works.bucket = 7;  // one rank that moves is enough
  for (int i = 0; i < 50; ++i) {
    beat();
    EXPECT_FALSE(watch.hung());
  }
  beat();
  const auto hung = watch.hung();
  ASSERT_TRUE(hung);
  EXPECT_EQ(hung->rank, LostRank::kNone);
  EXPECT_EQ(hung->cause, Cause::hung);
  EXPECT_EQ(sentence_of(*hung),
            "all ranks live, but none has ended a step or changed its phase for 0.0 s "
            "(--hang-timeout): ranks 0, 2-3 in all_gather of bucket 1, job step 41; "
            "rank 1 in forward_backward of bucket 7, job step 41");
  EXPECT_FALSE(watch.lost()) << "heartbeats came";
  works.job_step = 42;
  beat();
  EXPECT_FALSE(watch.hung());
}

TEST(RankWatch, NothingHangsWhileTheWatcherSleepsNorWithoutALimitNorOnceAllOthersHaveLeft) {
  constexpr HealthLimits kHangs{.heartbeat_us = 10, .lost_us = 100, .stall_us = 50, .hang_us = 500};
  RankWatch slept(2, kHangs, 0);
  slept.tick(10);
  slept.tick(100'000);
  EXPECT_FALSE(slept.hung());

  RankWatch endless(2, {.heartbeat_us = 10, .lost_us = 100, .stall_us = 50, .hang_us = 0}, 0);
  RankWatch left(2, kHangs, 0);
  left.on_goodbye(1);
  for (int64_t now = 0; now <= 1000; now += 10) {
    endless.tick(now);
    left.tick(now);
  }
  EXPECT_FALSE(endless.hung());
  EXPECT_FALSE(left.hung());
}

TEST(LostRank, IsTold) {
  LostRank lost{.rank = 2,
                .host = "node3",
                .pid = 4711,
                .last = {41, Phase::update, 1},
                .silence_us = 10'240'000};
  EXPECT_EQ(
      sentence_of(lost),
      "rank 2 (pid 4711 on node3) is lost: its process ended; last seen in update of bucket 1, "
      "job step 41");
  lost.cause = Cause::silent;
  EXPECT_THAT(sentence_of(lost),
              HasSubstr("is lost: no heartbeat for 10.2 s; last seen in update"));
  lost.cause = Cause::failed;
  lost.code = 74;
  lost.reason = "the disk is full";
  EXPECT_EQ(
      sentence_of(lost),
      "rank 2 (pid 4711 on node3) failed with exit code 74 in update of bucket 1, job step 41: "
      "the disk is full");
}

TEST(RankWatch, APausedJobNeitherHangsNorStallsHoweverLong) {
  constexpr HealthLimits kHangs{.heartbeat_us = 10, .lost_us = 100, .stall_us = 50, .hang_us = 500};
  RankWatch watch(2, kHangs, 0);
  for (const int rank : {0, 1}) watch.expect(rank, 0);
  for (int64_t now = 0; now < 5'000; now += 10) {
    for (const int rank : {0, 1}) watch.on_heartbeat(rank, {7, Phase::paused}, now);
    watch.tick(now);
    EXPECT_FALSE(watch.hung()) << now;
    EXPECT_EQ(watch.liveness(1), Liveness::alive) << now;
  }
  for (int64_t now = 5'000; !watch.hung(); now += 10) {  // resumed, and then it hangs
    ASSERT_LT(now, 6'000);
    for (const int rank : {0, 1}) watch.on_heartbeat(rank, {7, Phase::forward_backward}, now);
    watch.tick(now);
  }
}

}  // namespace
}  // namespace fusedbun::plan
