#include "fusedbun/launcher/control/live_job.h"

#include <gtest/gtest.h>

#include <cstdlib>

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

}  // namespace
}  // namespace fusedbun::launcher
