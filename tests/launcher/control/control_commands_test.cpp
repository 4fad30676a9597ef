// The commands that talk to a job, against a live server with a fake loop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/control/cancel_command.h"
#include "fusedbun/launcher/control/health_command.h"
#include "fusedbun/launcher/control/history_command.h"
#include "fusedbun/launcher/control/leave_commands.h"
#include "fusedbun/launcher/control/ranks_command.h"
#include "fusedbun/launcher/control/set_command.h"
#include "fusedbun/launcher/control/status_command.h"
#include "fusedbun/launcher/control/watch_command.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::launcher {
namespace {

using control::FakeLoop;
using testing::HasSubstr;

class ControlCommands : public testing::Test {
 protected:
  ControlCommands() : server_(control::options_in(folder_.path()), control::two_group_job()) {
    server_.set_state(control::JobState::running);
  }

  struct Outcome {
    ExitCode code;
    std::string output;
    std::string error;
  };
  /// Runs a command line as `fusedbun` does; the run folder is added.
  Outcome run(std::vector<std::string> words) {
    CLI::App app;
    add_status_command(app);
    add_set_command(app);
    add_unpin_command(app);
    add_cancel_command(app);
    add_history_command(app);
    add_ranks_command(app);
    add_watch_command(app);
    add_drain_command(app);
    add_stop_command(app);
    add_health_command(app);
    words.insert(words.end(), {"--run-dir", folder_.path().string()});
    std::ranges::reverse(words);  // as CLI11 wants them
    testing::internal::CaptureStdout();
    Outcome outcome{ExitCode::done, {}, {}};
    try {
      app.parse(words);
    } catch (const CLI::ParseError& error) {
      outcome = {ExitCode::usage, {}, error.what()};
    } catch (const Error& error) {
      outcome = {error.code(), {}, error.what()};
    }
    outcome.output = testing::internal::GetCapturedStdout();
    return outcome;
  }

  control::TemporaryFolder folder_;
  control::ControlServer server_;
};

TEST_F(ControlCommands, StatusShowsScheduleScaleAndPin) {
  const FakeLoop loop(server_.port());
  ASSERT_EQ(run({"set", "lr_scale=0.5"}).code, ExitCode::done);
  ASSERT_EQ(run({"set", "lr=0.25", "--group", "head", "--wait"}).code, ExitCode::done);
  const std::string text = run({"status"}).output;
  EXPECT_THAT(text, HasSubstr("state     RUNNING"));
  EXPECT_THAT(text, HasSubstr("2 ranks over local"));
  EXPECT_THAT(text, HasSubstr("of 1000000"));
  EXPECT_THAT(text, HasSubstr("lr 0.0005 (schedule 0.001 x scale 0.5)"));
  EXPECT_THAT(text, HasSubstr("lr 0.25 (pinned; schedule 0.001)"));
  EXPECT_THAT(text, HasSubstr("newest 2, in use 2"));
}

TEST_F(ControlCommands, StatusAsJson) {
  const auto json = nlohmann::json::parse(run({"status", "--output", "json"}).output);
  EXPECT_EQ(json.at("job").at("state"), "RUNNING");
  EXPECT_EQ(json.at("hyperparameters").at("groups").size(), 2U);
}

TEST_F(ControlCommands, SetSaysRevisionAndStepAndWhatChanged) {
  const FakeLoop loop(server_.port());
  const Outcome outcome =
      run({"set", "lr=3e-4", "Lambda=0.05", "--reason", "loss spikes", "--wait"});
  EXPECT_EQ(outcome.code, ExitCode::done) << outcome.error;
  EXPECT_THAT(outcome.output, HasSubstr("change 1: in use since step "));
  EXPECT_THAT(outcome.output, HasSubstr("body learning_rate: schedule -> 3e-04"));
  EXPECT_THAT(outcome.output, HasSubstr("head weight_decay: 0.01 -> 0.05"));
  EXPECT_EQ(loop.learning_rates().back(), 3e-4);
}

TEST_F(ControlCommands, UnpinGivesTheScheduleItsSayBack) {
  const FakeLoop loop(server_.port());
  ASSERT_EQ(run({"set", "lr=0.25", "--wait"}).code, ExitCode::done);
  EXPECT_THAT(run({"status"}).output, HasSubstr("lr 0.25 (pinned; schedule 0.001)"));
  const Outcome outcome = run({"unpin", "--wait", "--reason", "calm again"});
  EXPECT_THAT(outcome.output, HasSubstr("body learning_rate: 0.25 -> schedule"));
  EXPECT_THAT(run({"status"}).output, HasSubstr("lr 0.001 (schedule 0.001 x scale 1)"));
}

TEST_F(ControlCommands, HistorySaysWhoWhatAndWhy) {
  EXPECT_THAT(run({"history"}).output, HasSubstr("nobody has changed anything yet"));
  const FakeLoop loop(server_.port());
  ASSERT_EQ(
      run({"set", "lr=0.25", "Lambda=0.5", "--group", "head", "--wait", "--reason", "loss spikes"})
          .code,
      ExitCode::done);
  ASSERT_EQ(run({"unpin", "--group", "head", "--at-step", "900000"}).code, ExitCode::done);
  const std::string text = run({"history"}).output;
  EXPECT_THAT(text, HasSubstr("REVISION  STEP"));
  EXPECT_THAT(text, testing::ContainsRegex(
                        "1 +[0-9]+ +APPLIED .*lr=0.25 Lambda=0.5 \\(head\\)  loss spikes\n"));
  EXPECT_THAT(text, testing::ContainsRegex("2 +900000 +SCHEDULED .*lr=schedule \\(head\\)\n"));
  const std::string waiting = run({"history", "--state", "SCHEDULED"}).output;
  EXPECT_THAT(waiting, testing::Not(HasSubstr("APPLIED")));
  const auto json = nlohmann::json::parse(run({"history", "--output", "json"}).output);
  EXPECT_EQ(json.at("changes").size(), 2U);
  EXPECT_EQ(run({"history", "--state", "LOST"}).code, ExitCode::config);
  const std::string toml = run({"history", "--as-toml"}).output;
  EXPECT_THAT(toml, HasSubstr("[[changes]]\nat_step = "));
  EXPECT_THAT(toml, HasSubstr("reason = \"loss spikes\""));
}

TEST_F(ControlCommands, CancelTakesAScheduledChangeBack) {
  const FakeLoop loop(server_.port());
  ASSERT_EQ(run({"set", "lr=0.25", "--at-step", "900000"}).code, ExitCode::done);
  const Outcome outcome = run({"cancel", "1", "--reason", "loss recovered"});
  EXPECT_EQ(outcome.code, ExitCode::done) << outcome.error;
  EXPECT_THAT(outcome.output, HasSubstr("change 1: cancelled, so step 900000 will not use it"));
  const std::string text = run({"history"}).output;
  EXPECT_THAT(text, testing::ContainsRegex("1 +900000 +CANCELLED"));
  EXPECT_THAT(text, testing::ContainsRegex("2 .*cancels 1  loss recovered"));
  EXPECT_EQ(run({"cancel", "1"}).code, ExitCode::config);
  EXPECT_EQ(run({"cancel", "77"}).code, ExitCode::config);
}

TEST_F(ControlCommands, DrainAndStopAreAskedOnceAndTheReasonIsKept) {
  const FakeLoop loop(server_.port());
  const Outcome drained = run({"drain", "--reason", "the node goes down"});
  EXPECT_EQ(drained.code, ExitCode::done) << drained.error;
  EXPECT_THAT(drained.output, HasSubstr("the node goes down; it leaves at a step boundary"));
  EXPECT_EQ(run({"set", "lr=1"}).code, ExitCode::unavailable);
  const auto json = nlohmann::json::parse(run({"stop", "--output", "json"}).output);
  EXPECT_EQ(json.at("state"), "DRAINING");
  server_.set_state(control::JobState::stopped);
  EXPECT_EQ(run({"drain"}).code, ExitCode::config);
  EXPECT_EQ(run({"stop", "--wait", "--timeout", "0.1"}).code, ExitCode::config);
}

TEST_F(ControlCommands, WatchWithoutATerminalIsLinesUntilTheJobEnds) {
  const auto loop = std::make_unique<FakeLoop>(server_.port());
  ASSERT_EQ(run({"set", "lr=0.25", "--wait", "--reason", "loss spikes"}).code, ExitCode::done);
  std::thread ends([&] {
    loop->wait_for_step(50);
    server_.set_state(control::JobState::stopped, "drained");
  });
  const Outcome text = run({"watch"});
  ends.join();
  EXPECT_EQ(text.code, ExitCode::done) << text.error;
  EXPECT_THAT(text.output, HasSubstr("change 1 APPLIED"));
  EXPECT_THAT(text.output, HasSubstr("lr=0.25  \"loss spikes\""));
  EXPECT_THAT(text.output, HasSubstr("job STOPPED: drained"));
  EXPECT_THAT(text.output, testing::ContainsRegex("step [0-9]+ of 1000000"));
}

TEST_F(ControlCommands, WatchAsJsonIsOneObjectPerLine) {
  const FakeLoop loop(server_.port());
  std::thread ends([&] {
    loop.wait_for_step(50);
    server_.set_state(control::JobState::succeeded);
  });
  std::istringstream lines(run({"watch", "--output", "json"}).output);
  ends.join();
  int64_t samples = 0;
  int64_t events = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    samples += json.contains("sample");
    events += json.contains("event");
  }
  EXPECT_GT(samples, 10);
  EXPECT_GT(events, 0);
}

TEST_F(ControlCommands, ASnapshotShowsTheJobOnce) {
  const FakeLoop loop(server_.port());
  ASSERT_TRUE(loop.wait_for_step(5));
  const Outcome outcome = run({"watch", "--snapshot"});
  EXPECT_EQ(outcome.code, ExitCode::done) << outcome.error;
  EXPECT_THAT(outcome.output, HasSubstr("RUNNING  step "));
  EXPECT_THAT(outcome.output, HasSubstr("RANK  STATE"));
}

TEST_F(ControlCommands, ADryRunChangesNothing) {
  const Outcome outcome = run({"set", "lr=3e-4", "--dry-run", "--at-step", "500"});
  EXPECT_THAT(outcome.output, HasSubstr("dry run: would be used from step 500 on"));
  EXPECT_THAT(run({"status"}).output, HasSubstr("newest 0"));
}

TEST_F(ControlCommands, RefusedValuesAreOneSentenceAndCode78) {
  EXPECT_EQ(run({"set", "lr=nan"}).code, ExitCode::config);
  EXPECT_EQ(run({"set", "lr=-1"}).code, ExitCode::config);
  EXPECT_EQ(run({"set", "momentum_beta=0.5"}).code, ExitCode::config);
  EXPECT_EQ(run({"set", "lr=1", "--at-step", "0"}).code, ExitCode::config);
  const Outcome outcome = run({"set", "lr=1", "--group", "nobody"});
  EXPECT_EQ(outcome.code, ExitCode::config);
  EXPECT_THAT(outcome.error, HasSubstr("there is no group 'nobody'; this job has body, head"));
  EXPECT_THAT(run({"status"}).output, HasSubstr("newest 0"));
}

TEST_F(ControlCommands, WrongUsageIsCode64) {
  EXPECT_EQ(run({"set"}).code, ExitCode::usage);
  EXPECT_EQ(run({"set", "lr"}).code, ExitCode::usage);
  EXPECT_EQ(run({"set", "lr=1", "--dry-run", "--wait"}).code, ExitCode::usage);
  EXPECT_EQ(run({"health", "luck"}).code, ExitCode::usage);
  EXPECT_EQ(run({"cancel"}).code, ExitCode::usage);
  EXPECT_EQ(run({"cancel", "-1"}).code, ExitCode::usage);
  EXPECT_EQ(run({"unpin", "lr=1"}).code, ExitCode::usage);
}

TEST_F(ControlCommands, WaitEndsInTime) {
  const Outcome outcome =
      run({"set", "lr=1", "--wait", "--timeout", "0.1"});  // no loop: steps never end
  EXPECT_EQ(outcome.code, ExitCode::timeout);
  EXPECT_THAT(outcome.error, HasSubstr("is accepted, but step 2 has not ended"));
}

TEST_F(ControlCommands, HealthIsAnExitCode) {
  EXPECT_EQ(run({"health", "server"}).code, ExitCode::done);
  const Outcome stalled = run({"health"});
  EXPECT_EQ(stalled.code, ExitCode::unclassified);
  EXPECT_THAT(stalled.error, HasSubstr("progress is NOT_SERVING"));
  EXPECT_THAT(stalled.output, HasSubstr("control   SERVING"));
  const FakeLoop loop(server_.port());
  ASSERT_TRUE(loop.wait_for_step(1));
  Outcome healthy = run({"health", "--output", "json"});
  for (int i = 0; i < 100 && healthy.code != ExitCode::done; ++i)
    healthy = run({"health", "--output", "json"});
  EXPECT_EQ(nlohmann::json::parse(healthy.output).at("progress"), "SERVING");
  server_.shutdown();
  EXPECT_EQ(run({"health"}).code, ExitCode::unavailable);
  EXPECT_EQ(run({"status"}).code, ExitCode::unavailable);
}

}  // namespace
}  // namespace fusedbun::launcher
