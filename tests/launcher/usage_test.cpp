#include "fusedbun/launcher/cli/usage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>

namespace fusedbun::launcher {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(WordsOf, AcceptsUnderscoresInFlagNamesUpToTheProgram) {
  const char* const argv[] = {"fusedbun", "launch", "--log_dir=a_b", "--max_restarts", "a_b",
                              "--",       "x",      "--keep_this"};
  EXPECT_THAT(words_of(8, argv), ElementsAre("launch", "--log-dir=a_b", "--max-restarts", "a_b",
                                             "--", "x", "--keep_this"));
}

TEST(WithProgramMarked, OneOfOurCommandsNeedsNoMark) {
  CLI::App app("", "fusedbun");
  app.add_subcommand("train");
  CLI::App* const launch = app.add_subcommand("launch");
  std::vector<std::string> program;
  int ranks = 1;
  std::string folder;
  bool standalone = false;
  launch->add_option("-n,--ranks", ranks);
  launch->add_option("--log-dir", folder);
  launch->add_flag("--standalone", standalone);
  launch->add_option("program", program);
  using Words = std::vector<std::string>;
  const auto marked = [&](const Words& words) { return with_program_marked(app, words); };
  EXPECT_THAT(marked({"launch", "-n", "2", "train", "-n", "3"}),
              ElementsAre("launch", "-n", "2", "--", "train", "-n", "3"));
  EXPECT_THAT(marked({"launch", "--ranks=2", "--standalone", "train"}),
              ElementsAre("launch", "--ranks=2", "--standalone", "--", "train"));
  EXPECT_THAT(marked({"launch", "--log-dir", "train", "train"}),
              ElementsAre("launch", "--log-dir", "train", "--", "train"));
  for (const Words& unchanged : {Words{},
                                 {"train", "launch"},
                                 {"launch"},
                                 {"launch", "-n"},
                                 {"launch", "-n", "2", "python", "train"},
                                 {"launch", "train", "--", "x"},
                                 {"launch", "--log-dir", "train"}})
    EXPECT_EQ(marked(unchanged), unchanged);
}

std::string sentence_for(std::vector<std::string> words) {
  CLI::App app("", "fusedbun");
  app.require_subcommand(1);
  CLI::App* const launch = app.add_subcommand("launch");
  std::vector<std::string> program;
  int ranks = 1;
  launch->add_option("--ranks", ranks);
  launch->add_option("program", program);
  std::ranges::reverse(words);
  try {
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return usage_sentence(app, error);
  }
  return "";
}

TEST(UsageSentence, SaysWhatWasWrong) {
  EXPECT_EQ(sentence_for({}), "a command is missing (see 'fusedbun --help')");
  EXPECT_THAT(sentence_for({"lunch"}), HasSubstr("did you mean launch?"));
  EXPECT_THAT(sentence_for({"launch", "--rank", "2"}), HasSubstr("did you mean --ranks?"));
  EXPECT_THAT(sentence_for({"launch", "train", "--steps", "2"}), HasSubstr("put -- before"));
  EXPECT_THAT(sentence_for({"launch", "--ranks", "x"}), HasSubstr("--ranks = x"));
  EXPECT_EQ(sentence_for({"launch", "--ranks", "2", "--", "train", "--steps", "2"}), "");
}

}  // namespace
}  // namespace fusedbun::launcher
