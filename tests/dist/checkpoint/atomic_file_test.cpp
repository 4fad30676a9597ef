#include "fusedbun/dist/checkpoint/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::checkpoint {
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

TEST_F(AtomicFileTest, AStaleTemporaryFileIsReplaced) {
  write_text(target_.string() + ".tmp", "a longer text left by a killed writer");
  AtomicFile file(target_);
  file.write(bytes_of("new"));
  file.commit();
  EXPECT_EQ(read_text(target_), "new");
}

TEST_F(AtomicFileTest, ATemporaryNameThatIsALinkIsNotFollowed) {
  write_text(folder_ / "victim", "precious");
  std::filesystem::create_symlink(folder_ / "victim", target_.string() + ".tmp");
  EXPECT_THROW(AtomicFile{target_}, IoError);
  EXPECT_EQ(read_text(folder_ / "victim"), "precious");
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
}  // namespace fusedbun::checkpoint
