// The texts of changes.log.
#include "fusedbun/dist/changes/change_records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

std::vector<LedgerGroup> groups() {
  return {{"body", 1, preset("recommended", 1e-3)}};
}

AcceptedChange change_of(int64_t revision, const std::string& reason = {}) {
  AcceptedChange change;
  change.revision = revision;
  change.effective_step = 2;
  change.request.reason = reason;
  change.request.create_time_us = 1'700'000'000'123'456;
  return change;
}

std::string record_of(int64_t revision) {
  return change_record(change_of(revision), groups());
}

TEST(ChangeRecords, HostileTextIsAsciiOnOneLineAndComesBackAsItWas) {
  // New lines, a forged record, ANSI colours, DEL, the C1 form of CSI, and a character that turns the direction of text.
  const std::string hostile =
      "a\n{\"record\":\"forged\"}\r\n\x1b[31m\t\x7f\xc2\x9b"
      "2J\xe2\x80\xae"
      "end";
  const std::string record = change_record(change_of(1, hostile), groups());
  for (const char c : record) ASSERT_TRUE(c >= ' ' && c <= '~') << static_cast<int>(c);
  const LoggedRun run = read_records({{run_record("r", 1), record}});
  EXPECT_EQ(run.changes.at(0).request.reason, hostile);
  EXPECT_EQ(run.changes.at(0).request.create_time_us, 1'700'000'000'123'456);
  EXPECT_THAT(record, testing::HasSubstr("\"time\":\"2023-11-14T22:13:20.123456Z\""));
}

TEST(ChangeRecords, WhatWasVoidedIsNotThere) {
  const LoggedRun run = read_records({{run_record("r", 1), record_of(1), record_of(2), record_of(3),
                                       void_record(1), record_of(2)}});
  EXPECT_EQ(run.changes.size(), 2U);
  EXPECT_THROW(read_records({{run_record("r", 1), record_of(1), void_record(2)}}), DataError);
}

TEST(ChangeRecords, AnAttemptThatEndedForGoodIsFollowedByAnotherRun) {
  const std::string good = end_record({.step = 5, .state = "SUCCEEDED"});
  const std::string bad =
      end_record({.step = 5, .state = "FAILED", .again = true, .diverged = true});
  const std::string run = run_record("r", 1);
  EXPECT_EQ(read_records({{run, record_of(1), good, run, record_of(1)}}).changes.size(), 1U);
  const LoggedRun again = read_records({{run, record_of(1), bad, run, record_of(2), bad}});
  EXPECT_EQ(again.changes.size(), 2U);
  EXPECT_EQ(again.attempts, 2);
  ASSERT_TRUE(again.end);
  EXPECT_TRUE(again.end->diverged);
  EXPECT_EQ(again.end->step, 5);
  EXPECT_FALSE(read_records({{run, bad, run}}).end) << "the newest has not ended";
}

}  // namespace
}  // namespace fusedbun::changes
