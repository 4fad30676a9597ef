#include "fusedbun/launcher/train/progress.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::train {
namespace {

using namespace std::chrono_literals;
constexpr Progress::Clock::time_point kStart{};

Progress::Screen onto(std::ostringstream& screen) {
  return [&](std::string_view text) {
    screen << text;
    return true;
  };
}

StepLine line(int64_t job_step) {
  return {job_step, 100, 2.5, 12'345, 83};
}

TEST(Progress, FormatsAStep) {
  EXPECT_EQ(format(line(11)), "step 12/100  loss 2.5000  12.3 k tokens/s  1:23 left");
  StepLine scaled = line(11);
  scaled.loss_scale = 65536;
  EXPECT_EQ(format(scaled), "step 12/100  loss 2.5000  scale 65536  12.3 k tokens/s  1:23 left");
  EXPECT_EQ(format({0, 5, 1, 999, 3725}), "step 1/5  loss 1.0000  999.0 tokens/s  1:02:05 left");
}

TEST(Progress, ATerminalLineIsRewrittenAtMostTenTimesASecond) {
  std::ostringstream screen;
  {
    Progress progress(onto(screen), Progress::Style::rewritten);
    progress.step(line(0), kStart);
    progress.step(line(1), kStart + 99ms);
    progress.step(line(2), kStart + 100ms);
    progress.say("a sentence");
  }
  EXPECT_EQ(screen.str(),
            "\r\033[K" + format(line(0)) + "\r\033[K" + format(line(2)) + "\r\033[Ka sentence\n");
}

TEST(Progress, LogRecordsHaveTheNumbersOfAStep) {
  const support::ScratchFolder folder;
  std::ostringstream screen;
  Progress progress(onto(screen), Progress::Style::json);
  progress.write_to(folder / "train.log");
  progress.say("a \"sentence\"\xff");
  progress.step(line(0), kStart);
  progress.step(line(1), kStart + 9s);
  StepLine diverged = line(99);
  diverged.loss = std::nan("");
  progress.step(diverged, kStart + 9s);
  std::istringstream lines(screen.str());
  std::vector<nlohmann::json> records;
  for (std::string each; std::getline(lines, each);) records.push_back(nlohmann::json::parse(each));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].at("message"), "a \"sentence\"\xEF\xBF\xBD");
  EXPECT_EQ(records[0].at("level"), "info");
  EXPECT_EQ(records[1].at("message"), format(line(0)));
  EXPECT_EQ(records[1].at("step"), 0);
  EXPECT_EQ(records[1].at("total_steps"), 100);
  EXPECT_EQ(records[1].at("loss"), 2.5);
  EXPECT_EQ(records[2].at("step"), 99);
  EXPECT_TRUE(records[2].at("loss").is_null());
  EXPECT_EQ(support::read_text(folder / "train.log"),
            "a \"sentence\"\xff\n" + format(line(0)) + "\n" + format(diverged) + "\n");
}

TEST(Progress, PlainLinesComeEachTenSecondsAndAtTheEnd) {
  std::ostringstream screen;
  Progress progress(onto(screen), Progress::Style::plain);
  progress.step(line(0), kStart);
  progress.step(line(1), kStart + 9s);
  progress.step(line(2), kStart + 10s);
  progress.step(line(99), kStart + 11s);
  EXPECT_EQ(screen.str(),
            format(line(0)) + "\n" + format(line(2)) + "\n" + format(line(99)) + "\n");
}

TEST(Progress, AnOpenLineIsEnded) {
  std::ostringstream screen;
  { Progress(onto(screen), Progress::Style::rewritten).step(line(0), kStart); }
  EXPECT_EQ(screen.str().back(), '\n');
}

TEST(Progress, AScreenThatTakesNothingCostsLinesAndTheyAreCounted) {
  const support::ScratchFolder folder;
  std::ostringstream screen;
  bool takes = true;
  Progress progress(
      [&](std::string_view text) {
        if (takes) screen << text;
        return takes;
      },
      Progress::Style::rewritten);
  progress.write_to(folder / "train.log");
  progress.step(line(0), kStart);
  takes = false;
  progress.say("one");
  progress.say("two");
  progress.step(line(1), kStart + 1s);
  takes = true;
  progress.say("three");
  EXPECT_EQ(screen.str(), "\r\033[K" + format(line(0)) +
                              "\r\033[K(2 lines are missing here: nobody read them)\nthree\n");
  EXPECT_EQ(support::read_text(folder / "train.log"), "one\ntwo\nthree\n");
}

TEST(Progress, TheLogHasSentencesAndNoEscapes) {
  const support::ScratchFolder folder;
  Progress progress(nullptr, Progress::Style::plain);
  progress.say("before there is a log");
  progress.write_to(folder / "train.log");
  progress.say("a sentence");
  progress.step(line(0), kStart);
  EXPECT_EQ(support::read_text(folder / "train.log"), "a sentence\n" + format(line(0)) + "\n");
}

TEST(Progress, ALogThatCannotBeWrittenIsToldOnTheScreenOnce) {
  std::ostringstream screen;
  Progress progress(onto(screen), Progress::Style::plain);
  progress.write_to("/dev/full");
  progress.say("one");
  progress.say("two");
  EXPECT_EQ(screen.str(),
            "cannot write /dev/full: No space left on device; the run goes on, and lines that are "
            "lost are counted\n"
            "one\ntwo\n");
}

}  // namespace
}  // namespace fusedbun::train
