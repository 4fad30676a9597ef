// The launcher's decisions: a table of named cases, and random histories against a dumb second judgement.
#include "fusedbun/launcher/launch/supervision.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <random>
#include <vector>

namespace fusedbun::launch {
namespace {

constexpr SupervisionOptions kTwo = {.ranks = 2, .grace = 30'000, .failure_grace = 10'000};

Supervision started(const SupervisionOptions& options) {
  Supervision supervision(options);
  EXPECT_TRUE(supervision.begin(0).start_attempt);
  return supervision;
}

RankEnd exits(int rank, int code) {
  return {.rank = rank, .code = code};
}
RankEnd dies(int rank, int signal) {
  return {.rank = rank, .signal = signal};
}

TEST(RestartWait, DoublesUpToAMinuteAndNeverFallsBelowTheFirst) {
  const Milliseconds expected[] = {1'000, 2'000, 4'000, 8'000, 16'000, 32'000, 60'000, 60'000};
  for (int failures = 1; failures <= 8; ++failures) {
    EXPECT_EQ(restart_wait(1'000, failures), expected[failures - 1]) << failures;
  }
  EXPECT_EQ(restart_wait(1'000, 1'000'000), 60'000);
  EXPECT_EQ(restart_wait(90'000, 1), 90'000);
  EXPECT_EQ(restart_wait(90'000, 30), 90'000);
  EXPECT_EQ(restart_wait(0, 30), 0);
}

TEST(Supervision, RestartsWaitTwiceAsLongEachTimeAndAStopEndsTheWait) {
  Supervision supervision = started({.ranks = 1, .max_restarts = 9, .restart_delay = 500});
  Milliseconds now = 0;
  for (const Milliseconds wait : {500, 1'000, 2'000, 4'000}) {
    const Actions after = supervision.rank_ended({.rank = 0, .code = 1}, now);
    EXPECT_FALSE(after.start_attempt || after.finished);
    EXPECT_EQ(after.restart_in, wait);
    EXPECT_FALSE(supervision.time_passed(now + wait - 1).start_attempt);
    now += wait;
    EXPECT_TRUE(supervision.time_passed(now).start_attempt);
    EXPECT_EQ(supervision.living(), 1);
  }
  supervision.rank_ended({.rank = 0, .code = 1}, now);
  EXPECT_TRUE(supervision.restart_waits());
  const Actions stopped = supervision.signal_received(SIGTERM, now + 1);
  EXPECT_TRUE(stopped.finished);
  EXPECT_EQ(stopped.signal, 0);
  EXPECT_EQ(supervision.verdict().exit_code, 1);
}

TEST(Supervision, AnAttemptThatRanForMinutesBeginsTheRowAnew) {
  Supervision supervision = started({.ranks = 1, .max_restarts = 9, .restart_delay = 500});
  Milliseconds now = 0;
  const auto fails_after = [&](Milliseconds time) {
    const Actions after = supervision.rank_ended({.rank = 0, .code = 1}, now += time);
    EXPECT_TRUE(supervision.time_passed(now += after.restart_in.value()).start_attempt);
    return *after.restart_in;
  };
  EXPECT_EQ(fails_after(10), 500);
  EXPECT_EQ(fails_after(10), 1'000);
  EXPECT_EQ(fails_after(299'999), 2'000);
  EXPECT_EQ(fails_after(300'000), 500);  // the pause before it does not count
  EXPECT_EQ(fails_after(10), 1'000);
}

TEST(Supervision, AnySignalEndsThePause) {
  for (const int signal : {SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2}) {
    Supervision supervision = started({.ranks = 1, .max_restarts = 1, .restart_delay = 500});
    supervision.rank_ended(dies(0, SIGKILL), 0);
    const Actions actions = supervision.signal_received(signal, 100);
    EXPECT_TRUE(actions.finished) << signal;
    EXPECT_EQ(actions.signal, 0) << signal;
    EXPECT_FALSE(supervision.time_passed(1'000).start_attempt) << signal;
    EXPECT_EQ(supervision.verdict().exit_code, 137) << signal;
  }
}

// Told by a signal that the launcher passed on, one rank left; that the others miss it is no failure.
TEST(Supervision, APeerThatLeftAsToldIsNotLost) {
  for (const bool noticed_first : {false, true}) {
    for (const RankEnd& told : {exits(1, 75), dies(1, SIGUSR1)}) {
      Supervision supervision = started({.ranks = 2, .failure_grace = 10'000, .max_restarts = 3});
      EXPECT_EQ(supervision.signal_received(SIGUSR1, 0).signal, SIGUSR1);
      Actions last;
      for (const RankEnd& end :
           noticed_first ? std::vector{exits(0, 76), told} : std::vector{told, exits(0, 76)}) {
        last = supervision.rank_ended(end, 1);
      }
      EXPECT_TRUE(last.finished);
      EXPECT_EQ(supervision.verdict().culprit, told);
      EXPECT_EQ(supervision.verdict().exit_code, shell_code(told));
    }
  }
}

TEST(Supervision, AFailureAfterARankLeftAsToldIsNotTriedAgain) {
  Supervision supervision = started({.ranks = 2, .failure_grace = 10'000, .max_restarts = 3});
  supervision.rank_ended(exits(1, 75), 0);
  EXPECT_TRUE(supervision.rank_ended(exits(0, 74), 1).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 74);
}

TEST(Supervision, APeerThatWeStoppedAfterAnotherHadMissedItWasLost) {
  Supervision supervision = started({.ranks = 2, .max_restarts = 3});
  EXPECT_EQ(supervision.rank_ended(exits(0, 76), 0).signal, SIGTERM);
  EXPECT_TRUE(supervision.rank_ended(dies(1, SIGTERM), 1).restart_in.has_value());
  EXPECT_EQ(supervision.verdict().exit_code, 76);
}

TEST(Supervision, AllDoneEndsWithZero) {
  Supervision supervision = started(kTwo);
  EXPECT_EQ(supervision.rank_ended(exits(1, 0), 0).signal, 0);
  EXPECT_FALSE(supervision.deadline());  // the other may take as long as it likes
  EXPECT_TRUE(supervision.rank_ended(exits(0, 0), 5).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 0);
}

TEST(Supervision, FirstFailureEndsTheOthersAndGivesItsCode) {
  Supervision supervision = started({.ranks = 3, .failure_grace = 10'000});
  EXPECT_EQ(supervision.rank_ended(exits(1, 65), 100).signal, SIGTERM);
  EXPECT_EQ(supervision.deadline(), 10'100);
  EXPECT_EQ(supervision.rank_ended(dies(0, SIGTERM), 200).signal, 0);
  EXPECT_EQ(supervision.time_passed(10'099).signal, 0);
  EXPECT_EQ(supervision.time_passed(10'100).signal, SIGKILL);
  EXPECT_TRUE(supervision.rank_ended(dies(2, SIGKILL), 10'101).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 65);
  EXPECT_EQ(supervision.verdict().culprit, exits(1, 65));
}

TEST(Supervision, ADeadRankIsTheCauseOfAPeerThatNoticed) {
  Supervision supervision = started(kTwo);
  EXPECT_EQ(supervision.rank_ended(exits(0, 76), 0).signal, SIGTERM);
  supervision.rank_ended(dies(1, SIGKILL), 0);  // not ours: only SIGTERM was sent
  EXPECT_EQ(supervision.verdict().exit_code, 137);
  EXPECT_EQ(supervision.verdict().culprit.rank, 1);
}

TEST(Supervision, WithoutAGraceOnlyASecondSignalKillsWhatStillSaves) {
  Supervision supervision = started({.ranks = 2});
  EXPECT_EQ(supervision.signal_received(SIGTERM, 1'000).signal, SIGTERM);
  EXPECT_EQ(supervision.deadline(), std::nullopt);
  supervision.rank_ended(exits(1, 75), 2'000);
  EXPECT_EQ(supervision.deadline(), std::nullopt);
  EXPECT_EQ(supervision.signal_received(SIGTERM, 1'000'000).signal, SIGKILL);
  EXPECT_TRUE(supervision.rank_ended(dies(0, SIGKILL), 1'000'001).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 128 + SIGTERM);
}

TEST(Supervision, WithoutAGraceAFailureStillEndsTheOthersInTime) {
  Supervision supervision = started({.ranks = 2, .failure_grace = 10'000});
  supervision.signal_received(SIGTERM, 0);
  supervision.rank_ended(exits(1, 78), 500);
  EXPECT_EQ(supervision.deadline(), 10'500);
}

TEST(Supervision, ForwardsASignalAndKillsAfterTheGrace) {
  Supervision supervision = started(kTwo);
  EXPECT_EQ(supervision.signal_received(SIGTERM, 1'000).signal, SIGTERM);
  EXPECT_EQ(supervision.deadline(), 31'000);
  EXPECT_EQ(supervision.time_passed(31'000).signal, SIGKILL);
  supervision.rank_ended(dies(0, SIGKILL), 31'001);
  EXPECT_TRUE(supervision.rank_ended(dies(1, SIGKILL), 31'001).finished);
  EXPECT_EQ(supervision.verdict().outcome, Outcome::overdue);
  EXPECT_EQ(supervision.verdict().exit_code, 143);
}

TEST(Supervision, SignalsWithinASecondAreOneRequest) {
  Supervision supervision = started(kTwo);
  EXPECT_EQ(supervision.signal_received(SIGTERM, 0).signal, SIGTERM);
  EXPECT_EQ(supervision.signal_received(SIGTERM, 1).signal, 0);        // the ranks have it
  EXPECT_EQ(supervision.signal_received(SIGINT, 500).signal, SIGINT);  // some may ignore the first
  EXPECT_EQ(supervision.signal_received(SIGTERM, 999).signal, 0);
  EXPECT_EQ(supervision.deadline(), 30'000);
  EXPECT_EQ(supervision.signal_received(SIGTERM, 1'000).signal, SIGKILL);
}

TEST(Supervision, ASecondStopSignalKillsAtOnce) {
  Supervision supervision = started(kTwo);
  supervision.signal_received(SIGTERM, 0);
  EXPECT_EQ(supervision.signal_received(SIGINT, 1'000).signal, SIGKILL);
  EXPECT_FALSE(supervision.deadline());
  supervision.rank_ended(dies(0, SIGKILL), 11);
  supervision.rank_ended(dies(1, SIGKILL), 11);
  EXPECT_EQ(supervision.verdict().exit_code, 130);
}

TEST(Supervision, OtherSignalsAreForwardedWithoutADeadline) {
  for (const int signal : {SIGUSR1, SIGUSR2, SIGHUP}) {
    Supervision supervision = started(kTwo);
    EXPECT_EQ(supervision.signal_received(signal, 0).signal, signal);
    EXPECT_EQ(supervision.signal_received(signal, 1).signal, signal);
    EXPECT_FALSE(supervision.deadline());
  }
}

TEST(Supervision, LeavingOnRequestGivesTheOthersTheGraceAndNoSecondSigterm) {
  Supervision supervision = started(kTwo);
  supervision.signal_received(SIGTERM, 0);
  EXPECT_EQ(supervision.rank_ended(exits(1, 75), 500).signal, 0);
  EXPECT_EQ(supervision.deadline(), 30'000);  // the earlier of the two
  EXPECT_TRUE(supervision.rank_ended(exits(0, 75), 600).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 75);
}

TEST(Supervision, ARankThatStaysBehindAfterTheOthersLeftIsATimeout) {
  Supervision supervision = started(kTwo);
  supervision.rank_ended(exits(0, 75), 0);
  EXPECT_EQ(supervision.time_passed(30'000).signal, SIGKILL);
  supervision.rank_ended(dies(1, SIGKILL), 30'001);
  EXPECT_EQ(supervision.verdict().exit_code, 124);
}

TEST(Supervision, AFailureWhileStoppingShortensTheDeadlineWithoutASecondSigterm) {
  Supervision supervision = started(kTwo);
  supervision.signal_received(SIGTERM, 0);
  EXPECT_EQ(supervision.rank_ended(exits(0, 74), 1'000).signal, 0);
  EXPECT_EQ(supervision.deadline(), 11'000);
}

struct RestartCase {
  RankEnd end;
  bool restarted;
};
class Restart : public testing::TestWithParam<RestartCase> {};

TEST_P(Restart, FollowsTheTable) {
  Supervision supervision = started({.ranks = 1, .max_restarts = 1});
  const Actions actions = supervision.rank_ended(GetParam().end, 0);
  EXPECT_EQ(actions.restart_in.has_value(), GetParam().restarted);
  EXPECT_EQ(actions.finished, !GetParam().restarted);
  EXPECT_EQ(supervision.time_passed(0).start_attempt, GetParam().restarted);
  EXPECT_EQ(supervision.attempt(), GetParam().restarted ? 1 : 0);
  EXPECT_EQ(supervision.living(), GetParam().restarted ? 1 : 0);
}
INSTANTIATE_TEST_SUITE_P(
    Yes, Restart,
    testing::Values(RestartCase{exits(0, 1), true}, RestartCase{exits(0, 70), true},
                    RestartCase{exits(0, 71), true}, RestartCase{exits(0, 74), true},
                    RestartCase{exits(0, 76), true}, RestartCase{exits(0, 137), true},
                    RestartCase{dies(0, SIGKILL), true}, RestartCase{dies(0, SIGSEGV), true}));
INSTANTIATE_TEST_SUITE_P(
    No, Restart,
    testing::Values(RestartCase{exits(0, 0), false}, RestartCase{exits(0, 64), false},
                    RestartCase{exits(0, 65), false}, RestartCase{exits(0, 69), false},
                    RestartCase{exits(0, 75), false}, RestartCase{exits(0, 77), false},
                    RestartCase{exits(0, 78), false}, RestartCase{exits(0, 79), false},
                    RestartCase{exits(0, 124), false}));

TEST(Supervision, NothingIsRestartedAfterASignalThatTheLauncherReceived) {
  Supervision stopped = started({.ranks = 1, .max_restarts = 5});
  stopped.signal_received(SIGTERM, 0);
  EXPECT_TRUE(stopped.rank_ended(exits(0, 1), 1).finished);

  Supervision hung_up = started({.ranks = 1, .max_restarts = 5});
  hung_up.signal_received(SIGHUP, 0);
  EXPECT_TRUE(hung_up.rank_ended(dies(0, SIGHUP), 1).finished);
  EXPECT_EQ(hung_up.verdict().exit_code, 129);
}

TEST(Supervision, ARestartForgetsTheLastAttempt) {
  Supervision supervision = started({.ranks = 2, .failure_grace = 1'000, .max_restarts = 1});
  supervision.rank_ended(exits(0, 1), 0);
  supervision.rank_ended(dies(1, SIGTERM), 1);
  EXPECT_TRUE(supervision.time_passed(1).start_attempt);
  EXPECT_FALSE(supervision.deadline());
  EXPECT_EQ(supervision.rank_ended(exits(1, 70), 2).signal, SIGTERM);  // sent anew
  EXPECT_TRUE(supervision.rank_ended(dies(0, SIGTERM), 3).finished);
  EXPECT_EQ(supervision.verdict().exit_code, 70);
}

/// The verdict's code, judged afterwards from the whole history of one attempt that got no signals from outside: the
/// first real failure, else the first lost peer unless some rank left early, else the first one killed late, else the first that
/// left early.
int judged_afterwards(const std::vector<RankEnd>& ends, const std::vector<bool>& by_us) {
  const auto first = [&](auto&& accept) {
    for (size_t i = 0; i < ends.size(); ++i) {
      if (accept(i)) return static_cast<int>(i);
    }
    return -1;
  };
  const auto plain = [&](size_t i, int code) {
    return !by_us[i] && ends[i].signal == 0 && ends[i].code == code;
  };
  const int failed =
      first([&](size_t i) { return !by_us[i] && !plain(i, 0) && !plain(i, 75) && !plain(i, 76); });
  if (failed >= 0) return ends[failed].signal ? 128 + ends[failed].signal : ends[failed].code;
  const bool some_left = first([&](size_t i) { return plain(i, 75); }) >= 0;
  if (!some_left && first([&](size_t i) { return plain(i, 76); }) >= 0) return 76;
  if (first([&](size_t i) { return by_us[i] && ends[i].signal == SIGKILL; }) >= 0) return 124;
  if (some_left) return 75;
  return 0;
}

TEST(Supervision, RandomHistoriesEndInTimeAndAreJudgedAsByASecondReader) {
  const char* const given = std::getenv("FUSEDBUN_TEST_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "FUSEDBUN_TEST_SEED=" << seed << '\n';
  std::mt19937_64 random(seed);
  const auto below = [&](int end) { return static_cast<int>(random() % end); };
  for (int round = 0; round < 20'000; ++round) {
    const int ranks = 1 + below(5);
    Supervision supervision = started({.ranks = ranks, .grace = 50, .failure_grace = 20});
    std::vector<RankEnd> ends;
    std::vector<bool> by_us;
    std::vector<int> living(ranks);
    std::generate(living.begin(), living.end(), [i = 0]() mutable { return i++; });
    int sent = 0;
    int terms = 0;
    Milliseconds now = 0;
    const auto perform = [&](const Actions& actions) {
      if (actions.signal != 0) sent = actions.signal;
      terms += actions.signal == SIGTERM;
      ASSERT_FALSE(actions.start_attempt);
      ASSERT_EQ(actions.finished, living.empty());
    };
    while (!living.empty()) {
      now += below(15);
      perform(supervision.time_passed(now));
      ASSERT_GT(supervision.deadline().value_or(now + 1), now);
      if (sent != SIGKILL && below(3) == 0) continue;
      std::swap(living[below(static_cast<int>(living.size()))], living.back());
      const int codes[] = {0, 0, 0, 75, 76, 1, 65, 70};
      const int rank = living.back();
      const bool ours = sent != 0 && (sent == SIGKILL || below(2) == 0);
      const bool killed = !ours && sent != SIGKILL && below(10) == 0;
      living.pop_back();
      ends.push_back(ours     ? dies(rank, sent)
                     : killed ? dies(rank, SIGSEGV)
                              : exits(rank, codes[below(8)]));
      by_us.push_back(ours);
      perform(supervision.rank_ended(ends.back(), now));
    }
    ASSERT_LE(terms, 1);
    ASSERT_EQ(supervision.verdict().exit_code, judged_afterwards(ends, by_us)) << "round " << round;
  }
}

TEST(IsRestartable, OfSeveralHostsARankThatCouldNotMeetTheOthers) {
  for (const int code : {69, 124}) {
    EXPECT_FALSE(is_restartable({.code = code}, {}));
    EXPECT_TRUE(is_restartable({.code = code}, {}, /*several_hosts=*/true));
  }
  EXPECT_FALSE(is_restartable({.code = 78}, {}, /*several_hosts=*/true));
}

}  // namespace
}  // namespace fusedbun::launch
