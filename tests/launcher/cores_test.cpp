// How many cores a cgroup's quota is worth.
#include <gtest/gtest.h>

#include "fusedbun/launcher/env/host.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::launcher {
namespace {

class CoresOfQuota : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((folder_ / path).parent_path());
    support::write_text(folder_ / path, text);
  }
  std::optional<int> cores(const std::string& cgroups) const {
    return cores_of_quota(cgroups, folder_ / "");
  }
  support::ScratchFolder folder_;
};

TEST_F(CoresOfQuota, VersionTwoTakesTheTightestLevel) {
  write("cpu.max", "max 100000\n");
  write("pod/cpu.max", "250000 100000\n");
  write("pod/job/cpu.max", "max 100000\n");
  EXPECT_EQ(cores("0::/pod/job\n"), 3) << "2.5 cores";
  write("pod/job/cpu.max", "50000 100000\n");
  EXPECT_EQ(cores("0::/pod/job\n"), 1);
}

TEST_F(CoresOfQuota, InsideAContainerOnlyTheRootIsThere) {
  write("cpu.max", "200000 100000\n");
  EXPECT_EQ(cores("0::/docker/0123\n"), 2);
  EXPECT_EQ(cores("0::/\n"), 2);
}

TEST_F(CoresOfQuota, VersionOne) {
  write("cpu,cpuacct/job/cpu.cfs_quota_us", "400000\n");
  write("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  write("cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cores("5:memory:/job\n4:cpu,cpuacct:/job\n"), 4);
}

TEST_F(CoresOfQuota, NoneMeansNone) {
  EXPECT_EQ(cores(""), std::nullopt);
  EXPECT_EQ(cores("nonsense\n0::/\n"), std::nullopt);
  write("cpu.max", "max 100000\n");
  EXPECT_EQ(cores("0::/\n"), std::nullopt);
}

}  // namespace
}  // namespace fusedbun::launcher
