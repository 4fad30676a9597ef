#include "fusedbun/dist/run_folder/run_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "fusedbun/core/error.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::run_folder {
namespace {

using support::read_text;
using support::write_text;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::ThrowsMessage;

class RunRecordTest : public testing::Test {
 protected:
  RunRecorder start(Reuse reuse = Reuse::refuse_finished) {
    return {folder_ / "",
            {.total_steps = 300,
             .seed = 7,
             .world_size = 2,
             .command = {"fusedbun", "train"},
             .flags = {{"--lr", "0.1"}, {"--batch", "4"}},
             .config = {{{"lr", {"0.1"}}, {"data", {"a b", "c"}}}},
             .versions = {{"fusedbun", "1"}}},
            reuse,
            [this](const std::string& sentence) { said_ += sentence; }};
  }
  nlohmann::ordered_json json() const {
    return nlohmann::ordered_json::parse(read_text(folder_ / "run.json"));
  }
  support::ScratchFolder folder_;
  std::string said_;
};

TEST_F(RunRecordTest, AStartIsNotedAtOnce) {
  const RunRecorder recorder = start();
  EXPECT_EQ(json().at("format"), "fusedbun.run");
  const auto attempt = json().at("attempts").at(0);
  EXPECT_EQ(attempt.at("state"), "RUNNING");
  EXPECT_TRUE(attempt.at("exit_code").is_null());
  EXPECT_TRUE(attempt.at("ended").is_null());
  EXPECT_EQ(attempt.at("pid"), ::getpid());
  EXPECT_EQ(attempt.at("seed"), 7);
  EXPECT_EQ(attempt.at("flags").dump(), R"({"--lr":"0.1","--batch":"4"})");
  EXPECT_THAT(attempt.at("started").get<std::string>(),
              testing::MatchesRegex("20..-..-..T..:..:..Z"));
}

TEST_F(RunRecordTest, AnEndIsReadBack) {
  RunRecorder recorder = start();
  recorder.set_steps(120);
  recorder.set_model("a/model");
  recorder.end(RunState::drained, 75, "left early");
  const std::vector<Attempt> attempts = read_run_record(folder_ / "");
  ASSERT_THAT(attempts, SizeIs(1));
  EXPECT_EQ(attempts[0].state, RunState::drained);
  EXPECT_EQ(attempts[0].exit_code, 75);
  EXPECT_EQ(attempts[0].steps, 120);
  EXPECT_EQ(attempts[0].total_steps, 300);
  EXPECT_EQ(attempts[0].reason, "left early");
  EXPECT_EQ(attempts[0].model, "a/model");
  EXPECT_FALSE(attempts[0].ended.empty());
  EXPECT_THAT(attempts[0].command, testing::ElementsAre("fusedbun", "train"));
  EXPECT_THAT(*attempts[0].config,
              testing::ElementsAre(testing::Pair("lr", testing::ElementsAre("0.1")),
                                   testing::Pair("data", testing::ElementsAre("a b", "c"))));
}

TEST_F(RunRecordTest, ASavedModelMayBeOfAnEarlierStep) {
  start().end(RunState::drained, 75, "");
  EXPECT_FALSE(read_run_record(folder_ / "")[0].model_step);
  RunRecorder recorder = start();
  recorder.set_model("a/model", 80);
  recorder.end(RunState::succeeded, 0, "");
  EXPECT_EQ(read_run_record(folder_ / "")[1].model_step, 80);
  // Records from before there was the field.
  std::string text = read_text(folder_ / "run.json");
  text.erase(text.find("\"model_step\""), std::string("\"model_step\": null,").size());
  write_text(folder_ / "run.json", text);
  EXPECT_FALSE(read_run_record(folder_ / "")[0].model_step);
}

TEST_F(RunRecordTest, AttemptsThatMayBeRunAgainAreKept) {
  start().end(RunState::drained, 75, "");
  start();  // killed
  start().end(RunState::failed, 74, "no disk");
  const RunRecorder fourth = start();
  EXPECT_THAT(fourth.earlier(), SizeIs(3));
  const std::vector<Attempt> attempts = read_run_record(folder_ / "");
  ASSERT_THAT(attempts, SizeIs(4));
  EXPECT_EQ(attempts[1].state, RunState::running);
  EXPECT_EQ(attempts[2].reason, "no disk");
}

TEST_F(RunRecordTest, AFinishedRunKeepsItsFolder) {
  for (const RunState state : {RunState::succeeded, RunState::stopped}) {
    start(Reuse::overwrite).end(state, 0, "");
    const std::string before = read_text(folder_ / "run.json");
    EXPECT_THAT([&] { start(); }, ThrowsMessage<ConfigError>(HasSubstr("--overwrite")));
    EXPECT_EQ(read_text(folder_ / "run.json"), before);
  }
}

TEST_F(RunRecordTest, OverwritingRemovesTheEarlierRunButNotItsModel) {
  start().end(RunState::succeeded, 0, "");
  for (const char* name :
       {"metrics.jsonl", "train.log", "plan.txt", "error.json", "changes.log", "model.safetensors",
        "notes", "events.out.tfevents.0123456789.node3.17.0"})
    write_text(folder_ / name, "old");
  const RunRecorder recorder = start(Reuse::overwrite);
  EXPECT_THAT(recorder.earlier(), IsEmpty());
  std::vector<std::string> left;
  for (const auto& file : std::filesystem::directory_iterator(folder_ / ""))
    left.push_back(file.path().filename());
  EXPECT_THAT(left, testing::UnorderedElementsAre("run.json", "model.safetensors", "notes"));
}

TEST_F(RunRecordTest, WhatIsNoRecordIsSaid) {
  EXPECT_THAT(read_run_record(folder_ / ""), IsEmpty());
  for (const char* text : {"", "{", "[]", R"({"format":"other","version":1,"attempts":[]})",
                           R"({"format":"fusedbun.run","version":2,"attempts":[]})",
                           R"({"format":"fusedbun.run","version":1,"attempts":[{}]})"}) {
    write_text(folder_ / "run.json", text);
    EXPECT_THAT([&] { read_run_record(folder_ / ""); },
                ThrowsMessage<DataError>(HasSubstr("run.json")))
        << text;
  }
}

TEST_F(RunRecordTest, ARecordThatCannotBeWrittenCostsNothing) {
  RunRecorder recorder("/proc", {}, Reuse::refuse_finished,
                       [this](const std::string& sentence) { said_ += sentence; });
  recorder.end(RunState::succeeded, 0, "");
  EXPECT_THAT(said_, HasSubstr("/proc/run.json"));
}

}  // namespace
}  // namespace fusedbun::run_folder
