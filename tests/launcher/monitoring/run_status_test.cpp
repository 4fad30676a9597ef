#include "fusedbun/launcher/monitoring/run_status.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <vector>

namespace fusedbun::monitoring {
namespace {

TEST(DurationHistogram, CountsADurationAtTheFirstBoundThatIsNotBelowIt) {
  DurationHistogram durations;
  for (const double seconds : {0.0, 0.001, 0.0011, 0.5, 250.0, 251.0}) durations.add(seconds);
  EXPECT_EQ(durations.counts[0], 2u);
  EXPECT_EQ(durations.counts[1], 1u);
  EXPECT_EQ(durations.counts[8], 1u);
  EXPECT_EQ(durations.counts[16], 1u);
  EXPECT_EQ(durations.counts[17], 1u);
  EXPECT_DOUBLE_EQ(durations.sum_seconds, 501.5021);
}

TEST(ProcessUse, IsThisProcess) {
  const ProcessUse before = process_use();
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  EXPECT_LE(before.start_unix_time, now + 1);
  EXPECT_GT(before.start_unix_time, now - 600);
  std::ifstream one_more("/proc/self/stat");
  const std::vector<char> held(64 << 20, 'x');
  const auto busy_until = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
  while (std::chrono::steady_clock::now() < busy_until) {
  }
  const ProcessUse after = process_use();
  EXPECT_EQ(after.open_descriptors, before.open_descriptors + 1);
  EXPECT_GE(after.cpu_seconds, before.cpu_seconds + 0.05);
  EXPECT_GE(after.resident_bytes, before.resident_bytes + std::ssize(held) / 2);
  EXPECT_EQ(after.start_unix_time, before.start_unix_time);
}

}  // namespace
}  // namespace fusedbun::monitoring
