// What a run keeps for its launcher, and that the launcher's own reader finds it.
#include "fusedbun/launcher/train/last_words.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "fusedbun/launcher/launch/last_words.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

TEST(WhatIsLost, CountsTheStepsAfterTheCheckpoint) {
  EXPECT_EQ(what_is_lost(252, 200),
            "52 of 252 steps are lost, those after the checkpoint of step 200");
  EXPECT_EQ(what_is_lost(200, 200), "no step is lost: the checkpoint of step 200 has all 200");
  EXPECT_EQ(what_is_lost(20, std::nullopt), "all 20 steps are lost, for there is no checkpoint");
  EXPECT_EQ(what_is_lost(0, std::nullopt), "no step is lost, for none was done");
}

TEST(LastWords, TheLauncherReadsTheNewest) {
  const launch::LastWordsFile file;
  ::setenv(launch::kLastWordsVariable, file.path().c_str(), 1);
  EXPECT_TRUE(LastWords::are_wanted());
  LastWords words("--run-dir runs/a");
  words.keep_for_launcher();
  words.checkpoint_durable(200);
  EXPECT_EQ(file.read(), launch::LastWords{}) << "where it is is not known yet";
  words.steps_done(252);
  EXPECT_EQ(file.read(), (launch::LastWords{"in job step 252: 52 of 252 steps are lost, those "
                                            "after the checkpoint of step 200",
                                            "--run-dir runs/a"}));
  words.checkpoint_durable(252);
  const launch::LastWords last = {
      "in job step 252: no step is lost: the checkpoint of step 252 has all 252",
      "--run-dir runs/a"};
  EXPECT_EQ(file.read(), last) << "which is shorter";
  LastWords of_another_rank("");
  of_another_rank.steps_done(1);
  EXPECT_EQ(file.read(), last);
  ::unsetenv(launch::kLastWordsVariable);
  EXPECT_FALSE(LastWords::are_wanted());
}

TEST(LastWords, AFileThatIsNoLaunchersIsNotTouched) {
  const support::ScratchFolder scratch;
  const auto path = scratch / "precious";
  std::ofstream(path) << "precious";
  ::setenv(launch::kLastWordsVariable, path.c_str(), 1);
  EXPECT_FALSE(LastWords::are_wanted());
  LastWords words("");
  words.keep_for_launcher();
  words.steps_done(1);
  std::string text;
  std::ifstream file(path);
  std::getline(file, text);
  EXPECT_EQ(text, "precious");
  ::unsetenv(launch::kLastWordsVariable);
}

TEST(LastWords, NameTheFolderWhereTheCommandDoesNot) {
  EXPECT_EQ(LastWords("").same_command(), "the same command");
  EXPECT_EQ(LastWords("--run-dir runs/a").same_command(), "the same command with --run-dir runs/a");
}

}  // namespace
}  // namespace fusedbun::train
