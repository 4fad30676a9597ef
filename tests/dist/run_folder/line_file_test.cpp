#include "fusedbun/dist/run_folder/line_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <vector>

#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::run_folder {
namespace {

using support::read_text;
using testing::ElementsAre;
using testing::HasSubstr;

class LineFileTest : public testing::Test {
 protected:
  LineFile::Notice notice() {
    return [this](const std::string& sentence) { said_.push_back(sentence); };
  }
  support::ScratchFolder folder_;
  std::vector<std::string> said_;
};

TEST_F(LineFileTest, EveryLineIsThereAtOnceBehindWhatWasThere) {
  support::write_text(folder_ / "lines", "old\n");
  LineFile file(folder_ / "lines", notice());
  file.append("one");
  EXPECT_EQ(read_text(folder_ / "lines"), "old\none\n");
  file.append("");
  EXPECT_EQ(read_text(folder_ / "lines"), "old\none\n\n");
  EXPECT_EQ(file.lost(), 0);
  EXPECT_TRUE(said_.empty());
}

TEST_F(LineFileTest, AFullDiskCostsLinesAndIsToldOnce) {
  LineFile file("/dev/full", notice());
  file.append("one");
  file.append("two");
  EXPECT_EQ(file.lost(), 2);
  EXPECT_THAT(said_, ElementsAre(HasSubstr("cannot write /dev/full: No space left on device")));
}

TEST_F(LineFileTest, HalfALineIsTakenBackAndTheNextOneThatFitsIsWritten) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto signal_before = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{10, before.rlim_max};
  LineFile file(folder_ / "lines", notice());
  file.append("12345");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  file.append("1234567");
  const std::string while_full = read_text(folder_ / "lines");
  file.append("also not");
  ::setrlimit(RLIMIT_FSIZE, &before);
  file.append("later");
  std::signal(SIGXFSZ, signal_before);
  EXPECT_EQ(while_full, "12345\n");
  EXPECT_EQ(read_text(folder_ / "lines"), "12345\nlater\n");
  EXPECT_EQ(file.lost(), 2);
  EXPECT_THAT(said_, ElementsAre(HasSubstr("cannot write"),
                                 HasSubstr("is written again; lines lost so far: 2")));
}

TEST_F(LineFileTest, AFolderThatComesLaterIsEnough) {
  LineFile file(folder_ / "later/lines", notice());
  file.append("lost");
  std::filesystem::create_directory(folder_ / "later");
  file.append("kept");
  EXPECT_EQ(read_text(folder_ / "later/lines"), "kept\n");
}

}  // namespace
}  // namespace fusedbun::run_folder
