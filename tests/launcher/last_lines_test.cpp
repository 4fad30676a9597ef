// What the launcher says at the end, word for word.
#include "fusedbun/launcher/launch/last_lines.h"

#include <gtest/gtest.h>

#include <csignal>

namespace fusedbun::launch {
namespace {

using Lines = std::vector<std::string>;

const LastWords kWords = {.lost = "in job step 252: 52 of 252 steps are lost", .more_words = ""};
const Culprit kCulprit = {.pid = 4711, .host = "node3"};

Verdict failed(const RankEnd& end) {
  return {.outcome = Outcome::failed, .culprit = end, .exit_code = shell_code(end)};
}

TEST(LastLines, SayWhoFailedFirstWhatWasLostAndHowToGoOn) {
  EXPECT_EQ(last_lines(failed({.rank = 1, .signal = SIGKILL}), kCulprit, 4, 0, kWords,
                       "fusedbun launch -n 4 -- train"),
            (Lines{"rank 1 (pid 4711 on node3) failed first: it was ended by SIGKILL",
                   "in job step 252: 52 of 252 steps are lost",
                   "to go on: fusedbun launch -n 4 -- train"}));
}

TEST(LastLines, AddWhatTheSameCommandNeeds) {
  const LastWords unnamed = {.lost = "x", .more_words = "--run-dir runs/a"};
  EXPECT_EQ(
      last_lines(failed({.code = 1}), kCulprit, 1, 0, unnamed, "fusedbun launch train").back(),
      "to go on: fusedbun launch train --run-dir runs/a");
}

TEST(LastLines, OfAProgramThatSaysNothingNameTheRankAlone) {
  Culprit culprit = kCulprit;
  culprit.last_line = "ValueError: no";
  culprit.log_folder = "logs/1";
  EXPECT_EQ(last_lines(failed({.code = 1}), culprit, 1, 0, {}, "fusedbun launch -- python x.py"),
            (Lines{"rank 0 (pid 4711 on node3) left with exit code 1; its last line: ValueError: "
                   "no; its output: logs/1"}));
}

TEST(LastLines, OfWhatWouldFailAgainSayThatItMustBePutRight) {
  for (const int code : {64, 65, 69, 77, 78, 79, 124}) {
    EXPECT_TRUE(last_lines(failed({.code = code}), kCulprit, 2, 0, kWords, "c")
                    .back()
                    .starts_with("to go on once that is put right: "))
        << code;
  }
  for (const int code : {1, 70, 71, 74, 137}) {
    EXPECT_EQ(last_lines(failed({.code = code}), kCulprit, 2, 0, kWords, "c").back(), "to go on: c")
        << code;
  }
}

TEST(LastLines, AKilledRanksLastLineIsNoReason) {
  Culprit culprit = kCulprit;
  culprit.last_line = "step 3 loss 2.5";
  EXPECT_EQ(sentence_about_verdict(failed({.signal = SIGSEGV}), culprit, 2),
            "rank 0 (pid 4711 on node3) failed first: it was ended by SIGSEGV");
}

TEST(LastLines, OurOwnSentencesLoseTheirMarkAndLongOnesTheirEnd) {
  Culprit culprit = kCulprit;
  culprit.last_line = "fusedbun: lr = nan";
  EXPECT_EQ(sentence_about_verdict(failed({.code = 78}), culprit, 1),
            "rank 0 (pid 4711 on node3) left with exit code 78; its last line: lr = nan");
  culprit.last_line = std::string(10'000, 'x');
  EXPECT_LT(sentence_about_verdict(failed({.code = 78}), culprit, 1).size(), 500);
}

TEST(LastLines, WhoOnlyNoticedDidNotFailFirst) {
  Culprit culprit = kCulprit;
  culprit.last_line = "fusedbun: rank 1 (pid 9 on node4) is lost: no heartbeat for 10.0 s";
  EXPECT_EQ(sentence_about_verdict({Outcome::peer_lost, {.code = 76}, 76}, culprit, 2),
            "rank 0 (pid 4711 on node3) left with exit code 76, because another rank was lost; its "
            "last line: rank 1 (pid 9 on node4) is lost: no heartbeat for 10.0 s");
}

TEST(LastLines, SayThatRestartsAreUsedUp) {
  const auto first = [](int restarts) {
    return last_lines(failed({.code = 1}), kCulprit, 1, restarts, {}, "c").front();
  };
  EXPECT_EQ(first(0).find("restart"), std::string::npos);
  EXPECT_NE(first(1).find("; the one restart is used up"), std::string::npos);
  EXPECT_NE(first(3).find("; all 3 restarts are used up"), std::string::npos);
}

TEST(RestartLine, SaysWhichWhenAndWhy) {
  EXPECT_EQ(restart_line(2, 5, 1'500, "rank 1 failed", kWords),
            "restart 2 of at most 5 in 1.5 s: rank 1 failed; in job step 252: 52 of 252 steps are "
            "lost");
  EXPECT_EQ(restart_line(1, 1, 60'000, "x", {}), "restart 1 of at most 1 in 60 s: x");
}

TEST(ParseLastWords, ReadsTwoLinesAndNothingElse) {
  EXPECT_EQ(parse_last_words(std::string("lost\nmore words\n\0\0\0", 19)),
            (LastWords{"lost", "more words"}));
  EXPECT_EQ(parse_last_words("lost\n\n"), (LastWords{"lost", ""}));
  EXPECT_EQ(parse_last_words("lost\n"), (LastWords{"lost", ""}));
  for (const std::string& text : {std::string(), std::string(1024, '\0'), std::string("begun")}) {
    EXPECT_EQ(parse_last_words(text), LastWords{});
  }
}

}  // namespace
}  // namespace fusedbun::launch
