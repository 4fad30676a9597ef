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
  EXPECT_EQ(file.read(), launch::LastWords{});
  {
    LastWords words;
    ASSERT_TRUE(words.are_kept());
    words.keep("a long sentence about what is lost", "--run-dir runs/a");
    EXPECT_EQ(file.read(),
              (launch::LastWords{"a long sentence about what is lost", "--run-dir runs/a"}));
    words.keep("short", "");
  }
  EXPECT_EQ(file.read(), (launch::LastWords{"short", ""}));
  ::unsetenv(launch::kLastWordsVariable);
}

TEST(LastWords, AFileThatIsNoLaunchersIsNotTouched) {
  const support::ScratchFolder scratch;
  const auto path = scratch / "precious";
  std::ofstream(path) << "precious";
  ::setenv(launch::kLastWordsVariable, path.c_str(), 1);
  LastWords words;
  EXPECT_FALSE(words.are_kept());
  words.keep("lost", "");
  std::string text;
  std::getline(std::ifstream(path) >> std::ws, text);
  EXPECT_EQ(text, "precious");
  ::unsetenv(launch::kLastWordsVariable);
}

}  // namespace
}  // namespace fusedbun::train
