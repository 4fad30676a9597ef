#include "fusedbun/dist/changes/change_log_frames.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr size_t kBlock = 512;  // of a disk: it is written whole or not at all

/// A log whose first frames are on disk and whose last ones were written together when the machine went down.
struct CrashedLog {
  std::string bytes;
  size_t durable = 0;
  size_t frames_on_disk = 0;
};

CrashedLog crashed_log() {
  CrashedLog log;
  log.bytes = frame(R"({"record":"run"})", 0);
  log.frames_on_disk = 1;
  for (; log.frames_on_disk < 6; ++log.frames_on_disk)
    log.bytes += frame(R"({"record":"change","n":)" + std::to_string(log.frames_on_disk) + "}",
                       log.bytes.size());
  log.durable = log.bytes.size();
  for (int i = 0; i < 20; ++i)
    log.bytes += frame(R"({"record":"change","text":")" + std::string(40 + 10 * i, 'x') + "\"}",
                       log.durable);
  return log;
}

TEST(ChangeLogFrames, AreReadBackAndReadableByPeople) {
  const std::string bytes = frame(R"({"a":1})", 0) + frame(R"({"b":"x y"})", 46);
  EXPECT_THAT(bytes, testing::StartsWith("00000007 000000000000 "));
  const LogText text = read_frames(bytes);
  EXPECT_THAT(text.records, ElementsAre(R"({"a":1})", R"({"b":"x y"})"));
  EXPECT_EQ(text.valid_bytes, bytes.size());
  EXPECT_EQ(read_frames("").valid_bytes, 0U);
}

TEST(ChangeLogFrames, WhereverTheLastWriteStoppedTheRestIsRead) {
  const CrashedLog log = crashed_log();
  for (size_t size = log.durable; size <= log.bytes.size(); ++size) {
    const LogText text = read_frames(std::string_view(log.bytes).substr(0, size));
    ASSERT_GE(text.records.size(), log.frames_on_disk);
    ASSERT_GE(text.valid_bytes, log.durable);
    ASSERT_LE(text.valid_bytes, size);
  }
}

TEST(ChangeLogFrames, BlocksOfTheLastWriteMayBeMissingInAnyOrder) {
  const CrashedLog log = crashed_log();
  const size_t first_block = log.durable / kBlock + 1;
  const size_t blocks = log.bytes.size() / kBlock + 1 - first_block;
  for (size_t missing = 0; missing < (size_t{1} << blocks); ++missing) {
    std::string bytes = log.bytes;
    for (size_t block = 0; block < blocks; ++block) {
      if ((missing >> block & 1) == 0) continue;
      const size_t begin = (first_block + block) * kBlock;
      const size_t end = std::min(begin + kBlock, bytes.size());
      std::fill(bytes.begin() + begin, bytes.begin() + end, '\0');
    }
    const LogText text = read_frames(bytes);
    ASSERT_GE(text.records.size(), log.frames_on_disk) << missing;
    ASSERT_EQ(text.records.size() == 26, missing == 0) << missing;
  }
}

TEST(ChangeLogFrames, DamageOfWhatWasOnDiskIsNamed) {
  const CrashedLog log = crashed_log();
  for (size_t at = 0; at < log.durable; ++at) {
    for (const char flip : {'\1', '\x20'}) {
      std::string bytes = log.bytes;
      bytes[at] ^= flip;
      EXPECT_THROW(read_frames(bytes), DataError) << at;
    }
  }
  std::string bytes = log.bytes;
  const size_t third = bytes.find('\n', bytes.find('\n') + 1) + 1;
  bytes[third + 50] = '?';
  try {
    read_frames(bytes);
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("at byte " + std::to_string(third)));
  }
  bytes = log.bytes;
  bytes.erase(third, 30);
  EXPECT_THROW(read_frames(bytes), DataError);
}

TEST(ChangeLogFrames, AFileOfSomethingElseIsNotTouched) {
  EXPECT_THROW(read_frames("{\"record\":\"run\",\"version\":1}\n"), DataError);
  EXPECT_THROW(read_frames("My notes.\n"), DataError);
  EXPECT_THROW(read_frames(std::string(10'000, '0')), DataError);
  EXPECT_EQ(read_frames("0000").valid_bytes, 0U) << "torn in its first write";
  EXPECT_EQ(read_frames(std::string(100, '\0')).valid_bytes, 0U);
}

}  // namespace
}  // namespace fusedbun::changes
