#include "fusedbun/launcher/train/run_report.h"

#include <gtest/gtest.h>

namespace fusedbun::train {
namespace {

TEST(RunReportTest, MemoryIsThatOfTheRankThatTookMost) {
  constexpr int64_t kMebibyte = 1 << 20;
  EXPECT_EQ(memory_per_rank({100 * kMebibyte}, 90 * kMebibyte),
            "100.0 MiB at the peak; the forecast was 90.0 MiB (-10 %)");
  EXPECT_EQ(memory_per_rank({100 * kMebibyte, 200 * kMebibyte, 150 * kMebibyte}, 210 * kMebibyte),
            "200.0 MiB at the peak (rank 1); the forecast was 210.0 MiB (+5 %)");
}

}  // namespace
}  // namespace fusedbun::train
