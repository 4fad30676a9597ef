#include "fusedbun/dist/control/checkpoint_records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fusedbun::control {
namespace {

using State = CheckpointRecord::State;
using testing::ElementsAre;
using testing::IsEmpty;

const CheckpointRecords::Request kAsked{"uid:0", "", "before the higher lr"};

CheckpointFacts durable_after(int64_t steps) {
  return {.job_step = steps, .bytes = 100, .world_size = 2, .written_us = 5};
}

std::string refusal_of(const CheckpointRecords::Answer& answer) {
  const auto* refusal = std::get_if<changes::Refusal>(&answer);
  return refusal == nullptr ? "" : refusal->reason;
}

TEST(CheckpointRecords, OneThatIsAskedForIsToldOnceBegunAndDurable) {
  CheckpointRecords records;
  EXPECT_EQ(std::get<int64_t>(records.answer(12)), 12);
  EXPECT_FALSE(records.take_request()) << "answer() asks for nothing";
  EXPECT_THAT(records.accept(kAsked, 12, 1), ElementsAre(12));
  EXPECT_EQ(records.find(12)->state, State::creating);
  EXPECT_TRUE(records.take_request());
  EXPECT_FALSE(records.take_request());
  EXPECT_THAT(records.step_ended(11), IsEmpty()) << "12 steps are done: it is saved now";
  EXPECT_THAT(records.started(12, 2), IsEmpty());
  EXPECT_THAT(records.step_ended(12), IsEmpty());
  EXPECT_THAT(records.durable(durable_after(12), 3), ElementsAre(12));
  const CheckpointRecord& record = *records.find(12);
  EXPECT_EQ(record.state, State::active);
  EXPECT_EQ(record.facts.bytes, 100);
  EXPECT_EQ(record.create_us, 1);
  EXPECT_EQ(record.actor, "uid:0");
  EXPECT_EQ(record.reason, "before the higher lr");
  EXPECT_EQ(records.newest(), &record);
}

TEST(CheckpointRecords, AskingTwiceIsAskingOnce) {
  CheckpointRecords records;
  records.accept(kAsked, 12, 1);
  EXPECT_EQ(std::get<int64_t>(records.answer(14)), 12) << "nobody has begun to save it";
  EXPECT_THAT(records.accept({"uid:1", "", ""}, 12, 2), IsEmpty());
  EXPECT_EQ(records.find(12)->actor, "uid:0") << "the first";
}

TEST(CheckpointRecords, WhileOneIsWrittenNoOtherIsTaken) {
  CheckpointRecords records;
  EXPECT_THAT(records.started(10, 1), ElementsAre(10));
  EXPECT_EQ(refusal_of(records.answer(12)), "SAVE_UNDER_WAY");
  records.durable(durable_after(10), 2);
  EXPECT_EQ(refusal_of(records.answer(12)), "");
  records.started(20, 1);
  records.failed(20, "the disk is full", 2);
  EXPECT_EQ(refusal_of(records.answer(22)), "");
}

TEST(CheckpointRecords, TheSameRequestIsAnsweredTheSameAndAnotherWithItsIdIsRefused) {
  CheckpointRecords records;
  const CheckpointRecords::Request request{"uid:0", "once", ""};
  EXPECT_FALSE(records.repeated(request));
  records.accept(request, 12, 1);
  records.started(12, 1);
  EXPECT_EQ(std::get<int64_t>(*records.repeated(request)), 12) << "also while it is written";
  EXPECT_EQ(refusal_of(*records.repeated({"uid:0", "once", "why"})), "REQUEST_ID_REUSED");
  EXPECT_FALSE(records.repeated({"uid:1", "once", ""})) << "another one's";
  EXPECT_FALSE(records.repeated(kAsked)) << "without an id every request is its own";
}

TEST(CheckpointRecords, OneThatIsNotBegunInTimeHasFailed) {
  CheckpointRecords records;
  records.accept(kAsked, 12, 1);
  EXPECT_THAT(records.step_ended(11), IsEmpty());
  EXPECT_THAT(records.step_ended(12), ElementsAre(12)) << "13 steps are done";
  EXPECT_EQ(records.find(12)->state, State::failed);
  EXPECT_EQ(records.find(12)->error_reason, "NOT_SAVED");
  EXPECT_THAT(records.step_ended(13), IsEmpty());
  EXPECT_FALSE(records.take_request());

  records.accept(kAsked, 20, 1);
  records.started(19, 1);  // the program's own, one step before
  EXPECT_THAT(records.refused(20), ElementsAre(20));
  EXPECT_EQ(records.find(20)->error_reason, "SAVE_UNDER_WAY");
  EXPECT_THAT(records.step_ended(20), IsEmpty());
  EXPECT_THAT(records.refused(21), IsEmpty()) << "nobody asked for it";
}

TEST(CheckpointRecords, AFailureIsRememberedUntilTheNextIsDurable) {
  CheckpointRecords records;
  records.found(durable_after(5), "");
  records.started(10, 1);
  EXPECT_THAT(records.failed(10, "the disk is full", 1), ElementsAre(10));
  EXPECT_EQ(records.find(10)->error_reason, "WRITE_FAILED");
  EXPECT_EQ(records.last_error(), "the disk is full");
  EXPECT_EQ(records.newest()->facts.job_step, 5);
  records.started(20, 1);
  records.durable(durable_after(20), 1);
  EXPECT_EQ(records.last_error(), "");
  EXPECT_EQ(records.newest()->facts.job_step, 20);
}

TEST(CheckpointRecords, WhatWasFoundIsThereAndDamageIsSaid) {
  CheckpointRecords records;
  records.found(durable_after(5), "");
  records.found(durable_after(10), "manifest.json: cut");
  EXPECT_EQ(records.newest()->facts.job_step, 5);
  EXPECT_EQ(records.find(10)->state, State::failed);
  EXPECT_EQ(records.find(10)->error, "manifest.json: cut");
  EXPECT_EQ(records.last_error(), "") << "this job has saved nothing yet";
  EXPECT_THAT(records.deleted(5), ElementsAre(5));
  EXPECT_EQ(records.newest(), nullptr);
  EXPECT_THAT(records.deleted(99), IsEmpty());
}

TEST(CheckpointRecords, TheEndOfTheRunEndsWhatIsNotDurable) {
  CheckpointRecords records;
  records.started(10, 1);
  records.accept(kAsked, 12, 1);
  EXPECT_THAT(records.run_ended(), ElementsAre(10, 12));
  EXPECT_EQ(records.find(12)->error_reason, "RUN_ENDED");
  EXPECT_THAT(records.run_ended(), IsEmpty());
}

TEST(CheckpointRecords, TheEndOfARunWithAFullPastForgetsItsOldest) {
  CheckpointRecords records;
  for (size_t i = 0; i < CheckpointRecords::kPastMax; ++i) {
    const auto step = static_cast<int64_t>(100 + i);
    records.found(durable_after(step), "");
    records.deleted(step);
  }
  records.started(10, 1);  // the run went on from an older one
  records.accept(kAsked, 12, 1);
  EXPECT_THAT(records.run_ended(), ElementsAre(10, 12));
  EXPECT_EQ(records.list(0, 5000).size(), CheckpointRecords::kPastMax);
  EXPECT_EQ(records.find(10), nullptr);
}

TEST(CheckpointRecords, ThePastIsForgottenAndThePresentIsNot) {
  CheckpointRecords records;
  constexpr int64_t kSaves = 1500;
  for (int64_t step = 1; step <= kSaves; ++step) {
    records.started(step, 1);
    records.durable(durable_after(step), 1);
    if (step > 2) records.deleted(step - 2);
  }
  const auto all = records.list(0, kSaves);
  EXPECT_EQ(all.size(), CheckpointRecords::kPastMax + 2);
  EXPECT_EQ(all.front()->facts.job_step,
            kSaves - 1 - static_cast<int64_t>(CheckpointRecords::kPastMax));
  EXPECT_EQ(all.back()->facts.job_step, kSaves);
  EXPECT_THAT(records.list(kSaves - 1, 1), ElementsAre(records.find(kSaves - 1)));
}

}  // namespace
}  // namespace fusedbun::control
