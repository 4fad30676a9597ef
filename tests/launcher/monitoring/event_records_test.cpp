#include "fusedbun/launcher/monitoring/event_records.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace fusedbun::monitoring {
namespace {

// Test vectors of RFC 3720, B.4.
TEST(Crc32c, IsCastagnolis) {
  std::string ascending(32, '\0'), descending(32, '\0');
  for (int i = 0; i < 32; ++i)
    ascending[i] = static_cast<char>(i), descending[31 - i] = static_cast<char>(i);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  EXPECT_EQ(crc32c(ascending), 0x46DD794Eu);
  EXPECT_EQ(crc32c(descending), 0x113FDB5Cu);
}

// As `tensorboard.summary.writer.record_writer.RecordWriter` frames the message b"\x1a\x0dbrain.Event:2" with wall_time 0 and step 0 left out,
// except for those two fields, which are written here.
TEST(EventRecords, AreFramed) {
  const std::string record = version_record(1.5);
  uint64_t length = 0;
  std::memcpy(&length, record.data(), sizeof length);
  EXPECT_EQ(record.size(), 8 + 4 + length + 4);
  std::string expected("\x09\x00\x00\x00\x00\x00\x00\xF8\x3F\x10\x00\x1A\x0D", 13);
  expected += "brain.Event:2";
  EXPECT_EQ(record.substr(12, length), expected);
}

}  // namespace
}  // namespace fusedbun::monitoring
