#include "fusedbun/launcher/control/live_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/run_record.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::launcher {
namespace {

using std::chrono::milliseconds;

TEST(LiveJob, GoesOnOverTheNextConnectionWhenOneHasHadItsTime) {
  const control::TemporaryFolder folder;
  const std::string certificates = (folder.path() / "certificates").string();
  ASSERT_EQ(std::system((FUSEDBUN_CERTIFICATES_SCRIPT " " + certificates + " > /dev/null").c_str()),
            0);
  control::ControlOptions options = control::options_in(folder.path() / "run");
  options.address = "127.0.0.1:0";
  options.credentials = certificates;
  options.connection_age = options.connection_age_grace = milliseconds(200);
  control::ControlServer server(options, control::two_group_job());
  server.set_state(control::JobState::running);
  control::FakeLoop loop(server.port(), milliseconds(20));
  ASSERT_TRUE(loop.wait_for_step(0));
  LiveJob live({.run_dir = folder.path() / "run"});
  for (int i = 0; i < 30; ++i) {  // several connections long
    std::this_thread::sleep_for(milliseconds(100));
    live.refresh();
    ASSERT_FALSE(live.has_ended()) << live.view().trouble;
  }
  const int64_t step = live.view().job->step();
  const auto until = std::chrono::steady_clock::now() + milliseconds(5000);
  while (live.view().last->step() < step && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(milliseconds(10));
  EXPECT_GE(live.view().last->step(), step) << "samples still come";
  EXPECT_GT(step, 30);
  EXPECT_EQ(live.view().trouble, "");
}

/// One rank: this process.
struct ThisProcess : plan::RankDirectory {
  std::vector<plan::RankStatus> ranks() const override { return {{.rank = 0, .pid = ::getpid()}}; }
};

TEST(LiveJob, TheFolderTellsHowAJobHasEnded) {
  const control::TemporaryFolder folder;
  const ThisProcess ranks;
  const auto view_after_the_end = [&](bool has_record) {
    run_folder::RunRecorder record(folder.path(), {.steps = 7, .total_steps = 9},
                                   run_folder::Reuse::overwrite, [](const std::string&) {});
    control::ControlServer server(control::options_in(folder.path()), control::two_group_job());
    server.set_state(control::JobState::running);
    server.set_ranks(&ranks);
    LiveJob live({.run_dir = folder.path()});
    live.refresh();
    EXPECT_EQ(live.view().job->state(), control::v1::Job::RUNNING);
    record.end(run_folder::RunState::drained, 75, "");
    server.shutdown();
    if (!has_record) std::filesystem::remove(folder.path() / run_folder::kRecordName);
    live.refresh();
    return live.view();
  };
  const WatchView known = view_after_the_end(true);
  EXPECT_EQ(known.job->state(), control::v1::Job::STOPPED);
  EXPECT_EQ(known.job->state_reason(), "drained");
  EXPECT_EQ(known.job->step(), 7);
  EXPECT_EQ(known.trouble, "");
  const WatchView unknown = view_after_the_end(false);
  EXPECT_EQ(unknown.job->state(), control::v1::Job::RUNNING);
  EXPECT_THAT(unknown.trouble, testing::HasSubstr("no job answers"));
}

}  // namespace
}  // namespace fusedbun::launcher
