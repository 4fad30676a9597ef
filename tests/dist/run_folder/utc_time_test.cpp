#include "fusedbun/dist/run_folder/utc_time.h"

#include <gtest/gtest.h>

namespace fusedbun::run_folder {
namespace {

constexpr int64_t k2026Us = 1'767'225'600'000'000;  // date -d 2026-01-01T00:00:00Z +%s

TEST(UtcTime, IsSpeltAsInRfc3339) {
  EXPECT_EQ(utc_text(k2026Us / 1'000'000), "2026-01-01T00:00:00Z");
  EXPECT_EQ(utc_text_us(k2026Us + 250), "2026-01-01T00:00:00.000250Z");
  EXPECT_EQ(utc_text_us(-1), "1969-12-31T23:59:59.999999Z");
}

TEST(UtcTime, IsReadWithAnyFraction) {
  EXPECT_EQ(read_utc_us("2026-01-01T00:00:00Z"), k2026Us);
  EXPECT_EQ(read_utc_us("2026-01-01T00:00:00.25Z"), k2026Us + 250'000);
  EXPECT_EQ(read_utc_us("2026-01-01T00:00:00.000250Z"), k2026Us + 250);
  EXPECT_EQ(read_utc_us("2026-01-01T00:00:00.000250999Z"), k2026Us + 250);
  for (const char* wrong :
       {"", "2026", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00.Z",
        "2026-01-01T00:00:00.1234567890Z", "2026-01-01T00:00:00+01:00", "2026-13-01T00:00:00Z"}) {
    EXPECT_FALSE(read_utc_us(wrong)) << wrong;
  }
}

}  // namespace
}  // namespace fusedbun::run_folder
