// Lists of nodes as Slurm writes them -> hosts; expected values as `scontrol show hostnames` prints them.
#include "fusedbun/dist/plan/slurm_nodes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> expand(std::string_view text) {
  return expand_node_list("SLURM_STEP_NODELIST", text);
}

TEST(SlurmNodes, OneHost) {
  EXPECT_THAT(expand("localhost"), ElementsAre("localhost"));
  EXPECT_THAT(expand("gpu-7.cluster.example"), ElementsAre("gpu-7.cluster.example"));
}

TEST(SlurmNodes, RangesKeepTheirZerosAndTheirOrder) {
  EXPECT_THAT(expand("node[3-5,07],gpu1"),
              ElementsAre("node3", "node4", "node5", "node07", "gpu1"));
  EXPECT_THAT(expand("n[08-11]"), ElementsAre("n08", "n09", "n10", "n11"));
  EXPECT_THAT(expand("n[9-10]"), ElementsAre("n9", "n10"));
  EXPECT_THAT(expand("b2,a1"), ElementsAre("b2", "a1"))
      << "the step's first host, not the first of an alphabet";
}

TEST(SlurmNodes, SeveralBracketsAndWhatFollowsThem) {
  EXPECT_THAT(expand("r[1-2]n[1-2]"), ElementsAre("r1n1", "r1n2", "r2n1", "r2n2"));
  EXPECT_THAT(expand("n[1,3]-ib"), ElementsAre("n1-ib", "n3-ib"));
}

TEST(SlurmNodes, RefusesWhatIsNoList) {
  for (const char* const text :
       {"", ",", "n[", "n[1", "n[1-]", "n[-1]", "n[x]", "n[3-1]", "n]", "a,,b", "n[1]]",
        "n[0-999999]", "n[0-9999]m[0-9999]", "n[99999999999999999999]"}) {
    try {
      expand(text);
      FAIL() << text;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("SLURM_STEP_NODELIST = '" + std::string(text) + "'"));
    }
  }
}

TEST(SlurmNodes, PortsOfStepsAndOfNeighbouringJobsDiffer) {
  std::set<int> ports;
  for (uint64_t job = 4'194'000; job < 4'194'197; ++job) {
    for (uint64_t step = 0; step < 101; ++step) ports.insert(slurm_port(job, step));
  }
  EXPECT_EQ(ports.size(), 197U * 101U);
  EXPECT_GE(*ports.begin(), 10'000);
  EXPECT_LT(*ports.rbegin(), 30'000);
}

}  // namespace
}  // namespace fusedbun::plan
