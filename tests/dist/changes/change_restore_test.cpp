// Changes of an earlier attempt: which of them apply again, and what a person wants now beside them.
#include "fusedbun/dist/changes/change_restore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/changes/change_schedule.h"
#include "fusedbun/tests/support/scratch_folder.h"

namespace fusedbun::changes {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<LedgerGroup> groups() {
  return {{"body", 1, preset("recommended", 1e-3)}, {"head", 1, preset("recommended", 1e-3)}};
}

ChangeRequest request_of(const std::string& group, Field field, double value) {
  ChangeRequest request;
  request.patches = {{group, field, value}};
  request.etag = "*";
  request.actor = "uid:1";
  return request;
}

ChangeRequest at_step(ChangeRequest request, int64_t step) {
  request.apply_at_step = step;
  return request;
}

/// A run of two attempts or more in one folder; the ledger is that of the present one.
class Restored : public testing::Test {
 protected:
  void begin_attempt() {
    log_ = std::make_unique<ChangeLog>(folder_ / "");
    ledger_.emplace(groups(), 0, 0);
    restore_changes(*ledger_, log_->take_run());
    log_->begin("test");
    // What the ranks fold from the start.
    rank_ = ActiveChanges(2);
    rank_.accept(ledger_->entries(0, ledger_->newest_revision()));
  }
  void go_to_step(int64_t step) {
    while (ledger_->current_step() < step) ledger_->close_step(ledger_->current_step());
  }
  AcceptedChange make(const ChangeRequest& request) {
    auto verdict = ledger_->propose(request);
    AcceptedChange change = std::get<AcceptedChange>(verdict);
    log_->append({&change, 1}, ledger_->groups());
    ledger_->commit(change);
    rank_.accept(change.entries);
    EXPECT_EQ(rank_.chain_hash(), ledger_->chain_hash());
    return change;
  }
  /// The learning rate of "body" in that step.
  double learning_rate(int64_t step) const {
    return ledger_->settings_at(step).lr_pins[0].value_or(1e-3);
  }

  support::ScratchFolder folder_;
  std::unique_ptr<ChangeLog> log_;
  std::optional<ChangeLedger> ledger_;
  ActiveChanges rank_;
};

TEST_F(Restored, WhatAPersonWantsNowIsNotOverwrittenByTheAttemptBefore) {
  begin_attempt();
  go_to_step(10);
  make(request_of("*", Field::learning_rate, 0.5));                 // 1, used from step 12 on
  make(request_of("body", Field::eps, 1e-5));                       // 2
  make(request_of("head", Field::learning_rate, 0.25));             // 3
  make(at_step(request_of("*", Field::learning_rate, 0.125), 40));  // 4, planned
  make(at_step(request_of("*", Field::weight_decay, 0.1), 13));     // 5
  begin_attempt();
  EXPECT_EQ(learning_rate(12), 0.5);
  go_to_step(3);
  const AcceptedChange live = make(request_of("body", Field::unpin_learning_rate, 1));
  EXPECT_THAT(live.overrides, ElementsAre(1))
      << "not another field, another group, or a planned one";
  EXPECT_EQ(ledger_->state_of(1), ChangeState::cancelled);
  EXPECT_EQ(ledger_->cancelled_by(1), live.revision);
  EXPECT_EQ(learning_rate(20), 1e-3);
  EXPECT_EQ(learning_rate(40), 0.125) << "was asked for at this step";
  EXPECT_THAT(make(request_of("*", Field::learning_rate, 2)).overrides, ElementsAre(3));

  const uint64_t chain = ledger_->chain_hash();
  begin_attempt();
  EXPECT_EQ(ledger_->chain_hash(), chain) << "a third attempt knows the same";
  EXPECT_EQ(ledger_->state_of(1), ChangeState::cancelled);
  EXPECT_EQ(ledger_->state_of(2), ChangeState::scheduled);
  const auto logged = read_change_log(folder_ / "");
  EXPECT_TRUE(logged[0].cancelled && logged[2].cancelled && !logged[1].cancelled);
  EXPECT_THAT(logged_changes_as_toml(folder_ / ""), testing::Not(HasSubstr("0.5")));
}

TEST_F(Restored, AChangeIsOverriddenOnceAndNotAfterItsStep) {
  begin_attempt();
  go_to_step(10);
  make(request_of("*", Field::learning_rate, 0.5));
  begin_attempt();
  const ChangeRequest request = request_of("*", Field::learning_rate, 2);
  const AcceptedChange first = std::get<AcceptedChange>(ledger_->propose(request));
  EXPECT_THAT(first.overrides, ElementsAre(1));
  const AcceptedChange second = std::get<AcceptedChange>(ledger_->propose(request, {&first, 1}));
  EXPECT_THAT(second.overrides, IsEmpty()) << "the one before it in the batch has done so";
  ChangeRequest cancellation;
  cancellation.cancels = 1;
  EXPECT_EQ(std::get<Refusal>(ledger_->propose(cancellation, {&first, 1})).reason, "NOT_SCHEDULED");
  EXPECT_THAT(std::get<AcceptedChange>(ledger_->propose(at_step(request, 12))).overrides, IsEmpty())
      << "in the same step the newer one wins anyway";
}

ChangeRequest cancellation_of(int64_t revision) {
  ChangeRequest request;
  request.cancels = revision;
  request.actor = "uid:1";
  return request;
}

TEST_F(Restored, AJobThatGoesOnAtAStepHasTheChangesBeforeItInUse) {
  begin_attempt();
  go_to_step(10);
  make(request_of("*", Field::learning_rate, 0.5));              // 1, used from step 12 on
  make(at_step(request_of("*", Field::weight_decay, 0.1), 40));  // 2
  make(at_step(request_of("*", Field::eps, 1e-5), 20));          // 3
  make(cancellation_of(3));                                      // 4
  go_to_step(60);
  const uint64_t chain_at_60 = ledger_->chain_hash();
  make(at_step(request_of("*", Field::learning_rate, 0.125), 90));  // 5

  // The checkpoint of step 60 is loaded.
  log_ = std::make_unique<ChangeLog>(folder_ / "");
  std::vector<LedgerGroup> at_60 = groups();
  for (LedgerGroup& group : at_60) group.options.Lambda = 0.1;
  ledger_.emplace(at_60, 0, 0);
  const LoggedRun run = log_->take_run();
  EXPECT_NO_THROW(require_same_changes(run, 4, chain_at_60));
  EXPECT_NO_THROW(require_same_changes(run, 0, 0)) << "it knew of no change";
  EXPECT_THROW(require_same_changes(run, 4, chain_at_60 + 1), ConfigError);
  EXPECT_THROW(require_same_changes(run, 6, chain_at_60), ConfigError);
  restore_changes(*ledger_, run);
  ledger_->begin_at(60);
  log_->begin("test");
  EXPECT_EQ(ledger_->current_step(), 60);
  EXPECT_EQ(ledger_->newest_revision(), 5);
  EXPECT_EQ(ledger_->state_of(1), ChangeState::applied);
  EXPECT_EQ(ledger_->state_of(2), ChangeState::applied);
  EXPECT_EQ(ledger_->state_of(3), ChangeState::cancelled);
  EXPECT_EQ(ledger_->state_of(5), ChangeState::scheduled);
  EXPECT_EQ(learning_rate(60), 0.5);
  EXPECT_EQ(learning_rate(90), 0.125);
  EXPECT_EQ(ledger_->settings_at(60).groups[0].Lambda, 0.1);
  EXPECT_EQ(
      std::get<Refusal>(ledger_->propose(at_step(request_of("*", Field::eps, 1e-4), 61))).reason,
      "STEP_TOO_NEAR");
  EXPECT_EQ(std::get<Refusal>(ledger_->propose(cancellation_of(1))).reason, "NOT_SCHEDULED");
  EXPECT_EQ(
      std::get<AcceptedChange>(ledger_->propose(request_of("*", Field::eps, 1e-4))).effective_step,
      62);
  EXPECT_TRUE(std::holds_alternative<AcceptedChange>(ledger_->propose(cancellation_of(5))));
}

TEST_F(Restored, ARunThatDivergedWithLiveChangesDoesNotUseThemAgain) {
  begin_attempt();
  go_to_step(3);
  make(request_of("*", Field::learning_rate, 10));  // used from step 5 on
  log_->append_run_end({.step = 9, .state = "FAILED", .again = true, .diverged = true});
  try {
    begin_attempt();
    ADD_FAILURE() << "it would diverge again";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("change 1 from step 5 on"));
    EXPECT_THAT(error.what(), HasSubstr("--changes FILE in another run folder"));
  }
  EXPECT_THAT(logged_changes_as_toml(folder_ / ""), HasSubstr("lr = 10"))
      << "still there to be read";
}

TEST_F(Restored, ARunThatDivergedOfItsOwnValuesOrThatOnlyFailedGoesOn) {
  begin_attempt();
  log_->append_run_end({.step = 9, .state = "FAILED", .again = true, .diverged = true});
  begin_attempt();
  go_to_step(20);
  make(request_of("*", Field::learning_rate, 10));  // used from step 22 on, which never came
  log_->append_run_end({.step = 21, .state = "FAILED", .again = true, .diverged = true});
  begin_attempt();
  go_to_step(30);
  log_->append_run_end({.step = 31, .state = "FAILED", .again = true});
  begin_attempt();
  EXPECT_EQ(ledger_->newest_revision(), 1);
}

TEST_F(Restored, ALogWhoseOverridesWereEditedIsRefused) {
  begin_attempt();
  go_to_step(10);
  AcceptedChange change =
      std::get<AcceptedChange>(ledger_->propose(request_of("*", Field::eps, 1e-5)));
  change.overrides = {1};
  log_->append({&change, 1}, ledger_->groups());
  EXPECT_THROW(begin_attempt(), DataError);
}

TEST(ChangeLedger, AChangeThatTheRunCannotReachIsRefused) {
  ChangeLedger ledger(groups(), 0, 0, {}, /*total_steps=*/40);
  const auto reason = [&](const ChangeRequest& request) {
    const auto verdict = ledger.propose(request);
    const auto* refusal = std::get_if<Refusal>(&verdict);
    return refusal != nullptr ? refusal->reason : "accepted";
  };
  const ChangeRequest now = request_of("*", Field::eps, 1e-5);
  EXPECT_EQ(reason(at_step(now, 39)), "accepted") << "the last step";
  EXPECT_EQ(reason(at_step(now, 40)), "STEP_AFTER_END");
  for (int64_t step = 0; step < 37; ++step) ledger.close_step(step);
  EXPECT_EQ(reason(now), "accepted");
  ledger.close_step(37);
  EXPECT_EQ(reason(now), "STEP_AFTER_END");
  ChangeLedger unknown(groups(), 0, 0);
  EXPECT_TRUE(std::holds_alternative<AcceptedChange>(unknown.propose(at_step(now, 1'000'000))));
}

}  // namespace
}  // namespace fusedbun::changes
