// How jobs under the real mpirun end: cleanly, by an abort, a missed deadline, an error, a death.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "child_process.h"
#include "fusedbun/core/error.h"

namespace fusedbun::comm::testing {
namespace {

using ::testing::HasSubstr;

struct Ending {
  std::string scenario;
  int exit_code;
  std::string says;
};

class MpiEnding : public ::testing::TestWithParam<Ending> {};

TEST_P(MpiEnding, IsPromptAndHasTheRightCode) {
  ChildProcess job(
      {COMM_MPIEXEC, "-np", "2", "--oversubscribe", COMM_MPI_RANK, GetParam().scenario});
  EXPECT_EQ(job.wait(std::chrono::seconds(50)), GetParam().exit_code) << job.output();
  EXPECT_THAT(job.output(), HasSubstr(GetParam().says));
}

constexpr int code(ExitCode exit) {
  return static_cast<int>(exit);
}
INSTANTIATE_TEST_SUITE_P(
    , MpiEnding,
    ::testing::Values(
        Ending{"finish", 0, ""}, Ending{"user_owns_mpi", 0, ""},
        Ending{"abort_on_rank0", code(ExitCode::peer_lost), "rank 0 aborts"},
        Ending{
            "rank1_is_late", code(ExitCode::timeout),
            "mpi: rank 0 of 2 in barrier (operation 0): not done after 300 ms, waiting for rank 1"},
        Ending{"rank1_calls_another", code(ExitCode::config),
               "mpi: rank 1 called barrier where rank 0 called all_reduce(f32, 100, sum) "
               "(operation 1)"},
        Ending{"rank1_leaves", code(ExitCode::config),
               "mpi: rank 1 left after all_reduce(i64, 1, sum) (operation 0) where rank 0 called "
               "barrier (operation 1)"},
        Ending{"rank1_connects_late", code(ExitCode::timeout),
               "the ranks are not connected after 300 ms"},
        Ending{"rank0_throws", code(ExitCode::config), "rank 0 does not like its options"},
        Ending{"rank1_is_killed", 128 + SIGKILL, ""},
        Ending{"user_wants_no_threads", code(ExitCode::config), "MPI_THREAD_MULTIPLE"},
        Ending{"connects_after_the_end", code(ExitCode::config), "MPI was finalised"}),
    [](const auto& info) { return info.param.scenario; });

}  // namespace
}  // namespace fusedbun::comm::testing
