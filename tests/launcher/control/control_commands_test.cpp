// The commands status, set and health against a live server with a fake loop.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/launcher/control/health_command.h"
#include "fusedbun/launcher/control/set_command.h"
#include "fusedbun/launcher/control/status_command.h"
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
