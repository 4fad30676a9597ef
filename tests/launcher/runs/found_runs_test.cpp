#include "fusedbun/launcher/runs/found_runs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "../../support/scratch_folder.h"
#include "fusedbun/core/error.h"
#include "fusedbun/dist/run_folder/run_record.h"

namespace fusedbun::launcher {
namespace {

namespace fs = std::filesystem;
using run_folder::RunState;

class FoundRunsTest : public testing::Test {
 protected:
  /// A run whose record this process writes; `end`: how it ended, if it has.
  fs::path make_run(const std::string& name, std::optional<RunState> end,
                    const std::string& metrics = "") {
    const fs::path folder = folder_ / name;
    fs::create_directories(folder);
    run_folder::Attempt attempt;
    attempt.total_steps = 300;
    run_folder::RunRecorder recorder(folder, attempt, run_folder::Reuse::refuse_finished,
                                     [](const std::string&) {});
    if (end) recorder.end(*end, *end == RunState::succeeded ? 0 : 75, "");
    std::ofstream(folder / "metrics.jsonl") << metrics;
    return folder;
  }
  std::vector<FoundRun> found() { return find_runs({folder_ / "."}).runs; }
  support::ScratchFolder folder_;
};

TEST_F(FoundRunsTest, TellsWhatEachRunHasComeTo) {
  make_run("a/ended", RunState::succeeded,
           "{\"step\":0,\"loss\":3.5}\n{\"step\":1,\"loss\":3.25}\n"
           "{\"step\":2,\"validation_loss\":3.125}\n{\"step\":2,\"lo");
  make_run("b", std::nullopt);
  const auto runs = found();
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].folder.filename(), "b");
  EXPECT_EQ(runs[0].state, "RUNNING");  // by this process
  EXPECT_FALSE(runs[0].loss);
  EXPECT_EQ(runs[1].state, "SUCCEEDED");
  EXPECT_EQ(runs[1].steps, 2);
  EXPECT_EQ(runs[1].loss, 3.25);
  EXPECT_EQ(runs[1].validation_loss, 3.125);
  EXPECT_EQ(runs[1].attempt.total_steps, 300);
}

TEST_F(FoundRunsTest, OneWhoseProcessIsGoneWasKilled) {
  const pid_t child = ::fork();
  if (child == 0) {
    make_run("killed", std::nullopt);
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  const auto runs = found();
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].state, "KILLED");
}

TEST_F(FoundRunsTest, AttemptsCountAndTheNewestTells) {
  make_run("a", RunState::drained);
  make_run("a", RunState::succeeded);
  ASSERT_EQ(found().size(), 1u);
  EXPECT_EQ(found()[0].attempts, 2);
  EXPECT_EQ(found()[0].state, "SUCCEEDED");
}

TEST_F(FoundRunsTest, OfALongFileTheEndCounts) {
  std::string metrics;
  for (int step = 0; step < 5000; ++step) {
    metrics += "{\"step\":" + std::to_string(step) + ",\"loss\":" + std::to_string(5000 - step) +
               ",\"lr\":0.001}\n";
  }
  make_run("a", std::nullopt, metrics);
  EXPECT_EQ(found()[0].steps, 5000);
  EXPECT_EQ(found()[0].loss, 1);
}

TEST_F(FoundRunsTest, DamagedRecordsAndLinksDoNotStopIt) {
  const fs::path run = make_run("runs/a", RunState::succeeded);
  fs::create_directories(folder_ / "runs/b");
  std::ofstream(folder_ / "runs/b/run.json") << "{";
  fs::create_directory_symlink(folder_ / "runs", folder_ / "runs/c");
  const RunsFound all = find_runs({folder_ / "."});
  EXPECT_EQ(all.runs.size(), 1u);
  ASSERT_EQ(all.problems.size(), 1u);
  EXPECT_THAT(all.problems[0], testing::HasSubstr("runs/b/run.json"));
  EXPECT_THROW(find_runs({folder_ / "absent"}), DataError);
}

}  // namespace
}  // namespace fusedbun::launcher
