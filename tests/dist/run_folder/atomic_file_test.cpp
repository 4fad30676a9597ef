#include "fusedbun/dist/run_folder/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::run_folder {
namespace {

using support::read_text;
using support::ScratchFolder;
using support::write_text;

using testing::HasSubstr;
using testing::ThrowsMessage;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

class AtomicFileTest : public testing::Test {
 protected:
  int names_in_folder() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_ / ""), {}));
  }
  ScratchFolder folder_;
  std::filesystem::path target_ = folder_ / "target";
};

TEST_F(AtomicFileTest, TargetIsWhatItWasUntilCommit) {
  write_text(target_, "old");
  AtomicFile file(target_);
  file.write(bytes_of("new "));
  file.write(bytes_of("content"));
  EXPECT_EQ(read_text(target_), "old");
  file.commit();
  EXPECT_EQ(read_text(target_), "new content");
  EXPECT_EQ(names_in_folder(), 1);
}

TEST_F(AtomicFileTest, WithoutCommitNothingIsLeft) {
  { AtomicFile(target_).write(bytes_of("half")); }
  EXPECT_EQ(names_in_folder(), 0);
}

TEST_F(AtomicFileTest, WritersOfOneTargetDoNotTouchEachOther) {
  AtomicFile first(target_);
  first.write(bytes_of("first, "));
  AtomicFile second(target_);
  second.write(bytes_of("second"));
  require_writable(target_);  // as a second job asks while the first one writes
  { AtomicFile given_up(target_); }
  first.write(bytes_of("whole"));
  first.commit();
  EXPECT_EQ(read_text(target_), "first, whole");
  second.commit();
  EXPECT_EQ(read_text(target_), "second");
  EXPECT_EQ(names_in_folder(), 1);
}

TEST_F(AtomicFileTest, ATargetThatIsThereMayBeKept) {
  AtomicFile first(target_), second(target_);
  first.write(bytes_of("first"));
  second.write(bytes_of("second"));
  EXPECT_TRUE(first.commit_new());
  EXPECT_FALSE(second.commit_new());
  EXPECT_EQ(read_text(target_), "first");
}

TEST_F(AtomicFileTest, WhatAKilledWriterLeftIsRemovedAndNothingElse) {
  for (const char* name : {"model.0123abcd.tmp", "model.tmp", "0123abcd.tmp", ".0123abcd.tmp",
                           "a.0123ABCD.tmp", "a.0123abcd"})
    write_text(folder_ / name, "x");
  remove_leftovers(folder_ / "");
  EXPECT_EQ(names_in_folder(), 5);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "model.0123abcd.tmp"));
  remove_leftovers(folder_ / "absent");
}

TEST_F(AtomicFileTest, TheModeIsAsAskedLessTheUmask) {
  const mode_t before = ::umask(022);
  {
    AtomicFile open(target_), closed(folder_ / "closed", 0600);
    open.commit();
    closed.commit();
  }
  ::umask(before);
  using std::filesystem::perms;
  EXPECT_EQ(std::filesystem::status(target_).permissions(), perms{0644});
  EXPECT_EQ(std::filesystem::status(folder_ / "closed").permissions(), perms{0600});
}

TEST_F(AtomicFileTest, SpaceIsAskedForBefore) {
  require_space(target_, 1);
  EXPECT_THAT([&] { require_space(target_, int64_t{1} << 60); },
              ThrowsMessage<IoError>(HasSubstr("it will take 1152921504606846976 bytes and only")));
}

TEST_F(AtomicFileTest, AWriteThatFailsLeavesTheTarget) {
  write_text(target_, "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto signal_before = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text(10'000, 'x');
  EXPECT_THAT(
      [&] { AtomicFile(target_).write(bytes_of(text)); },
      ThrowsMessage<IoError>(HasSubstr("cannot write " + target_.string() + ": File too large")));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, signal_before);
  EXPECT_EQ(read_text(target_), "old");
  EXPECT_EQ(names_in_folder(), 1);
}

TEST_F(AtomicFileTest, WhatCannotBeWrittenIsKnownBefore) {
  EXPECT_THAT([&] { require_writable(folder_ / "absent/target"); },
              ThrowsMessage<IoError>(HasSubstr("No such file or directory")));
  EXPECT_THAT([&] { require_writable(folder_ / ""); },
              ThrowsMessage<IoError>(HasSubstr("it is a folder")));
  EXPECT_THAT([&] { require_writable("/proc/target"); },
              ThrowsMessage<IoError>(HasSubstr("/proc/target")));
  require_writable(target_);
  EXPECT_EQ(names_in_folder(), 0);
}

}  // namespace
}  // namespace fusedbun::run_folder
