#include "fusedbun/dist/changes/change_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_batch.h"
#include "fusedbun/dist/changes/change_schedule.h"

namespace fusedbun::changes {
namespace {

using testing::HasSubstr;

Options options_with(double momentum_beta) {
  Options options = preset("recommended", 1e-3);
  options.momentum_beta = momentum_beta;
  return options;
}

ChangeLedger two_groups(int64_t first_step = 0) {
  return ChangeLedger({{"body", 100, options_with(0.9)}, {"head", 10, options_with(0)}}, 1.0,
                      first_step);
}

ChangeRequest request_of(std::vector<ValuePatch> patches, std::string etag = "*") {
  ChangeRequest request;
  request.patches = std::move(patches);
  request.etag = std::move(etag);
  request.actor = "uid:1";
  return request;
}

AcceptedChange accept(ChangeLedger& ledger, const ChangeRequest& request) {
  auto verdict = ledger.propose(request);
  if (auto* refusal = std::get_if<Refusal>(&verdict)) {
    ADD_FAILURE() << refusal->message;
    return {};
  }
  AcceptedChange change = std::get<AcceptedChange>(verdict);
  ledger.commit(change);
  return change;
}

std::string refusal_of(const ChangeLedger& ledger, const ChangeRequest& request) {
  const auto verdict = ledger.propose(request);
  const auto* refusal = std::get_if<Refusal>(&verdict);
  return refusal == nullptr ? "accepted" : refusal->reason;
}

std::string refusal_of(const std::vector<ValuePatch>& patches) {
  return refusal_of(two_groups(), request_of(patches));
}

StepReport report_of(const ChangeLedger& ledger, int64_t job_step) {
  const Settings settings = ledger.settings_at(job_step);
  StepReport report;
  report.job_step = job_step;
  report.group_options = settings.groups;
  report.max_grad_norm = settings.max_grad_norm;
  report.lr_scale = settings.lr_scale;
  return report;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(ChangeLedger, NumbersChangesFromOneAndUsesThemALeadLater) {
  ChangeLedger ledger = two_groups(10);
  EXPECT_EQ(accept(ledger, request_of({{"*", Field::eps, 1e-6}})).effective_step, 12);
  ledger.close_step(10);
  const AcceptedChange second = accept(ledger, request_of({{"*", Field::eps, 1e-7}}));
  EXPECT_EQ(second.revision, 2);
  EXPECT_EQ(second.effective_step, 11 + kLead);
  EXPECT_EQ(second.previous.groups[0].eps, 1e-6);
  EXPECT_EQ(second.resulting.groups[1].eps, 1e-7);
}

TEST(ChangeLedger, TheStepBoundaryDecidesWhichStepAChangeReaches) {
  ChangeLedger ledger = two_groups();
  const auto before =
      std::get<AcceptedChange>(ledger.propose(request_of({{"*", Field::eps, 1e-6}})));
  ledger.close_step(0);
  const auto after =
      std::get<AcceptedChange>(ledger.propose(request_of({{"*", Field::eps, 1e-6}})));
  EXPECT_EQ(before.effective_step + 1, after.effective_step);
}

TEST(ChangeLedger, ProposingChangesNothing) {
  const ChangeLedger ledger = two_groups();
  const std::string etag = ledger.etag();
  EXPECT_EQ(refusal_of(ledger, request_of({{"*", Field::learning_rate, 0.5}})), "accepted");
  EXPECT_EQ(ledger.etag(), etag);
  EXPECT_EQ(ledger.newest_revision(), 0);
  EXPECT_FALSE(ledger.settings_at(100).lr_pins[0].has_value());
}

TEST(ChangeLedger, EtagIsAskedForAndMustBeTheNewest) {
  ChangeLedger ledger = two_groups();
  const std::vector<ValuePatch> patch = {{"body", Field::weight_decay, 0.1}};
  EXPECT_EQ(refusal_of(ledger, request_of(patch, "")), "ETAG_REQUIRED");
  const std::string first = ledger.etag();
  EXPECT_FALSE(accept(ledger, request_of(patch, first)).unconditional);
  EXPECT_EQ(refusal_of(ledger, request_of(patch, first)), "ETAG_MISMATCH");
  EXPECT_NE(ledger.etag(), first);
  EXPECT_TRUE(accept(ledger, request_of(patch, "*")).unconditional);
  const auto refused = std::get<Refusal>(ledger.propose(request_of(patch, first)));
  EXPECT_EQ(refused.kind, RefusalKind::aborted);
  EXPECT_EQ(refused.metadata.at(0).second, ledger.etag());
}

TEST(ChangeLedger, HostileValuesAreRefused) {
  EXPECT_EQ(refusal_of({{"*", Field::learning_rate, kNan}}), "NOT_FINITE");
  EXPECT_EQ(refusal_of({{"*", Field::learning_rate, kInf}}), "NOT_FINITE");
  EXPECT_EQ(refusal_of({{"*", Field::lr_scale, -kInf}}), "NOT_FINITE");
  EXPECT_EQ(refusal_of({{"*", Field::learning_rate, -1e-300}}), "OUT_OF_SPEC");
  EXPECT_EQ(refusal_of({{"*", Field::eps, 0}}), "OUT_OF_SPEC");
  EXPECT_EQ(refusal_of({{"body", Field::momentum_beta, 0}}), "OUT_OF_SPEC");
  EXPECT_EQ(refusal_of({{"body", Field::momentum_beta, 1}}), "OUT_OF_SPEC");
  EXPECT_EQ(refusal_of({{"*", Field::beta_decay, 0}}), "OUT_OF_SPEC")
      << "the constructor's rule for decay power";
  EXPECT_EQ(refusal_of({{"*", Field::unpin_learning_rate, 0}}), "OUT_OF_SPEC");
  EXPECT_EQ(refusal_of({{"nobody", Field::eps, 1}}), "UNKNOWN_GROUP");
  EXPECT_EQ(refusal_of({{"", Field::eps, 1}}), "UNKNOWN_GROUP");
  EXPECT_EQ(refusal_of({{"body", Field::lr_scale, 1}}), "JOB_FIELD_IN_GROUP");
  EXPECT_EQ(refusal_of({{"head", Field::momentum_beta, 0.5}}), "MOMENTUM_FIXED");
  EXPECT_EQ(refusal_of({{"*", Field::momentum_beta, 0.5}}), "MOMENTUM_FIXED");
  EXPECT_EQ(refusal_of({}), "EMPTY_CHANGE");
  EXPECT_EQ(refusal_of({{"body", Field::eps, 1}, {"body", Field::eps, 2}}), "FIELD_SET_TWICE");
  EXPECT_EQ(
      refusal_of({{"body", Field::learning_rate, 1}, {"body", Field::unpin_learning_rate, 1}}),
      "FIELD_SET_TWICE");
  EXPECT_EQ(refusal_of(std::vector<ValuePatch>(kPatchesMax + 1, {"body", Field::eps, 1})),
            "TOO_MANY_VALUES");
  EXPECT_EQ(refusal_of({{"*", Field::learning_rate, std::numeric_limits<double>::max()}}),
            "accepted");
}

TEST(ChangeLedger, OneBadValueRefusesTheWhole) {
  ChangeLedger ledger = two_groups();
  EXPECT_EQ(refusal_of(ledger,
                       request_of({{"*", Field::eps, 1e-3}, {"body", Field::weight_decay, kNan}})),
            "NOT_FINITE");
  EXPECT_EQ(ledger.settings_at(100).groups[0].eps, 1e-8);
}

TEST(ChangeLedger, LongTextsAreRefused) {
  ChangeRequest request = request_of({{"*", Field::eps, 1}});
  request.reason = std::string(kReasonBytesMax + 1, 'x');
  EXPECT_EQ(refusal_of(two_groups(), request), "REASON_TOO_LONG");
  request.reason.pop_back();
  EXPECT_EQ(refusal_of(two_groups(), request), "accepted");
  request.request_id = std::string(kRequestIdBytesMax + 1, 'x');
  EXPECT_EQ(refusal_of(two_groups(), request), "REQUEST_ID_TOO_LONG");
}

TEST(ChangeLedger, AStepTooNearIsOutOfRange) {
  const ChangeLedger ledger = two_groups(10);
  ChangeRequest request = request_of({{"*", Field::eps, 1}});
  request.apply_at_step = 11;
  const auto refused = std::get<Refusal>(ledger.propose(request));
  EXPECT_EQ(refused.kind, RefusalKind::out_of_range);
  EXPECT_THAT(refused.message, HasSubstr("from step 12 on"));
  request.apply_at_step = std::numeric_limits<int64_t>::min();
  EXPECT_EQ(refusal_of(ledger, request), "STEP_TOO_NEAR");
  request.apply_at_step = 12;
  EXPECT_EQ(refusal_of(ledger, request), "accepted");
  request.apply_at_step = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(refusal_of(ledger, request), "accepted");
}

TEST(ChangeLedger, APinHoldsUntilItIsUnpinned) {
  ChangeLedger ledger = two_groups();
  accept(ledger,
         request_of({{"*", Field::learning_rate, 0.5}, {"head", Field::learning_rate, 0.25}}));
  EXPECT_EQ(ledger.settings_at(2).lr_pins[0], 0.5);
  EXPECT_EQ(ledger.settings_at(2).lr_pins[1], 0.25) << "a named group after * overrides it";
  accept(ledger, request_of({{"head", Field::unpin_learning_rate, 1}}));
  EXPECT_EQ(ledger.settings_at(2).lr_pins[0], 0.5);
  EXPECT_EQ(ledger.settings_at(2).lr_pins[1], std::nullopt);
}

TEST(ChangeLedger, AChangeForALaterStepIsSeenThere) {
  ChangeLedger ledger = two_groups();
  ChangeRequest later = request_of({{"*", Field::max_grad_norm, 0.5}});
  later.apply_at_step = 100;
  accept(ledger, later);
  EXPECT_EQ(ledger.settings_at(ledger.earliest_step()).max_grad_norm, 1.0);
  EXPECT_EQ(ledger.settings_at(99).max_grad_norm, 1.0);
  EXPECT_EQ(ledger.settings_at(100).max_grad_norm, 0.5);
}

TEST(ChangeLedger, StateFollowsTheStepsThatEnded) {
  ChangeLedger ledger = two_groups();
  accept(ledger, request_of({{"*", Field::eps, 1e-5}}));
  ChangeRequest later = request_of({{"*", Field::eps, 1e-4}});
  later.apply_at_step = 50;
  accept(ledger, later);
  for (int64_t step = 0; step < 2; ++step) {
    ledger.close_step(step);
    ledger.observe(report_of(ledger, step));
    EXPECT_EQ(ledger.state_of(1), ChangeState::scheduled);
  }
  ledger.close_step(2);
  EXPECT_EQ(ledger.state_of(1), ChangeState::scheduled);
  ledger.observe(report_of(ledger, 2));
  EXPECT_EQ(ledger.state_of(1), ChangeState::applied);
  EXPECT_EQ(ledger.state_of(2), ChangeState::scheduled);
  ledger.end_run();
  EXPECT_EQ(ledger.state_of(1), ChangeState::applied);
  EXPECT_EQ(ledger.state_of(2), ChangeState::rejected);
}

TEST(ChangeLedger, ARepeatedRequestBringsTheSameChangeBack) {
  ChangeLedger ledger = two_groups();
  ChangeRequest request = request_of({{"*", Field::eps, 1e-5}}, ledger.etag());
  request.request_id = "a";
  accept(ledger, request);
  const auto again = ledger.propose(request);  // its etag is outdated by itself
  ASSERT_TRUE(std::holds_alternative<ChangeLedger::Replay>(again));
  EXPECT_EQ(std::get<ChangeLedger::Replay>(again).revision, 1);
  request.patches[0].value = 1e-4;
  EXPECT_EQ(refusal_of(ledger, request), "REQUEST_ID_REUSED");
  request.actor = "uid:2";
  request.etag = "*";
  EXPECT_EQ(refusal_of(ledger, request), "accepted") << "ids are an actor's own";
}

TEST(ChangeLedger, RequestIdsAreForgottenAfterManyChanges) {
  ChangeLedger ledger = two_groups();
  ChangeRequest first = request_of({{"*", Field::eps, 1e-5}});
  first.request_id = "a";
  accept(ledger, first);
  auto accept_another = [&, step = int64_t{0}]() mutable {
    accept(ledger, request_of({{"*", Field::eps, 1e-6}}));
    ledger.close_step(step);
    ledger.observe(report_of(ledger, step++));
  };
  for (int64_t i = 1; i < ChangeLedger::kRememberedRequests; ++i) accept_another();
  EXPECT_TRUE(std::holds_alternative<ChangeLedger::Replay>(ledger.propose(first)));
  accept_another();
  EXPECT_EQ(refusal_of(ledger, first), "accepted");
}

TEST(ChangeLedger, OnlySoManyMayWait) {
  ChangeLedger ledger = two_groups();
  ChangeRequest later = request_of({{"*", Field::eps, 1e-5}});
  later.apply_at_step = 1'000'000;
  for (size_t i = 0; i < ChangeLedger::kPendingMax; ++i) accept(ledger, later);
  EXPECT_EQ(refusal_of(ledger, later), "TOO_MANY_PENDING");
}

TEST(ChangeLedger, ALateGroupBecomesKnownByItsReport) {
  ChangeLedger ledger = two_groups();
  StepReport report = report_of(ledger, 0);
  report.group_options.push_back(preset("recommended", 1e-3));
  ledger.close_step(0);
  ledger.observe(report);
  ASSERT_EQ(ledger.groups().size(), 3U);
  EXPECT_EQ(accept(ledger, request_of({{"group2", Field::eps, 0.5}})).entries.at(0).group, 2);
  EXPECT_EQ(ledger.settings_at(3).groups[2].eps, 0.5);
}

TEST(ChangeLedger, WhatTheTrainingLoopSetsItselfIsSeen) {
  ChangeLedger ledger = two_groups();
  accept(ledger, request_of({{"body", Field::eps, 1e-5}}));
  StepReport report = report_of(ledger, 0);
  report.group_options[0].Lambda = 0.7;
  report.max_grad_norm = 3;
  ledger.close_step(0);
  ledger.observe(report);
  EXPECT_EQ(ledger.settings_at(2).groups[0].Lambda, 0.7);
  EXPECT_EQ(ledger.settings_at(2).groups[0].eps, 1e-5) << "still to come";
  EXPECT_EQ(ledger.settings_at(2).max_grad_norm, 3);
}

ChangeRequest cancel_of(int64_t revision) {
  ChangeRequest request;
  request.cancels = revision;
  request.actor = "uid:1";
  return request;
}

TEST(ChangeLedger, ACancellationTakesARevisionAndLeavesNothingBehind) {
  ChangeLedger ledger = two_groups();
  ChangeRequest later = request_of({{"*", Field::eps, 1e-6}});
  later.apply_at_step = 10;
  accept(ledger, later);
  const std::string etag = ledger.etag();
  const AcceptedChange cancel = accept(ledger, cancel_of(1));
  EXPECT_EQ(cancel.revision, 2);
  EXPECT_EQ(cancel.previous.groups[0].eps, 1e-6);
  EXPECT_EQ(cancel.resulting.groups[0].eps, two_groups().groups()[0].options.eps);
  EXPECT_NE(ledger.etag(), etag);
  EXPECT_EQ(ledger.state_of(1), ChangeState::cancelled);
  EXPECT_EQ(ledger.state_of(2), ChangeState::applied);
  EXPECT_EQ(ledger.cancelled_by(1), 2);
  EXPECT_FALSE(ledger.has_scheduled());
  ActiveChanges rank(2);
  rank.accept(ledger.entries(0, 2));
  EXPECT_EQ(rank.chain_hash(), ledger.chain_hash());
}

TEST(ChangeLedger, OnlyWhatCanStillBeKeptFromItsStepIsCancelled) {
  ChangeLedger ledger = two_groups();
  accept(ledger, request_of({{"*", Field::eps, 1e-6}}));  // for step 2
  EXPECT_EQ(refusal_of(ledger, cancel_of(2)), "UNKNOWN_CHANGE");
  EXPECT_EQ(refusal_of(ledger, cancel_of(0)), "UNKNOWN_CHANGE");
  EXPECT_EQ(refusal_of(ledger, cancel_of(1)), "accepted");
  ledger.close_step(0);
  EXPECT_EQ(refusal_of(ledger, cancel_of(1)), "STEP_TOO_NEAR");
  ledger.close_step(1);
  ledger.close_step(2);
  ledger.observe(report_of(ledger, 2));
  EXPECT_EQ(refusal_of(ledger, cancel_of(1)), "NOT_SCHEDULED");
}

TEST(ChangeLedger, ChangesForTheNextStepStayInOrder) {
  ChangeLedger ledger = two_groups();
  const auto first = std::get<AcceptedChange>(
      ledger.propose(request_of({{"*", Field::eps, 1e-6}}), {}, /*spare_steps=*/5));
  ledger.commit(first);
  EXPECT_EQ(first.effective_step, 7);
  const AcceptedChange second = accept(ledger, request_of({{"*", Field::eps, 1e-5}}));
  EXPECT_EQ(second.effective_step, 7) << "else the older one would win";
  EXPECT_EQ(ledger.settings_at(ledger.next_step(0)).groups[0].eps, 1e-5);
}

TEST(ChangeLedger, WeightDecayOfAllGroupsLeavesOutThoseThatAreExempt) {
  ChangeLedger ledger({{"default", 100, options_with(0.9)},
                       {"no_decay", 10, options_with(0.9), /*is_exempt_from_decay=*/true}},
                      1.0, 0);
  AcceptedChange change =
      accept(ledger, request_of({{"*", Field::weight_decay, 0.5}, {"*", Field::eps, 0.25}}));
  EXPECT_EQ(change.resulting.groups[0].Lambda, 0.5);
  EXPECT_EQ(change.resulting.groups[1].Lambda, change.previous.groups[1].Lambda);
  for (const Options& group : change.resulting.groups) EXPECT_EQ(group.eps, 0.25);
  change = accept(ledger, request_of({{"no_decay", Field::weight_decay, 0.125}}));
  EXPECT_EQ(change.resulting.groups[1].Lambda, 0.125) << "by name it is what was asked for";
  // Where all are exempt, all are meant.
  ChangeLedger exempt({{"only", 100, options_with(0.9), /*is_exempt_from_decay=*/true}}, 1.0, 0);
  change = accept(exempt, request_of({{"*", Field::weight_decay, 0.5}}));
  EXPECT_EQ(change.resulting.groups[0].Lambda, 0.5);
}

TEST(ChangeBatch, IsTakenWholeOrNotAtAll) {
  ChangeLedger ledger = two_groups();
  const ChangeRequest one = request_of({{"*", Field::eps, 1e-6}}, ledger.etag());
  const ChangeRequest stale = request_of({{"*", Field::eps, 1e-5}}, ledger.etag());
  ChangeRequest named = request_of({{"*", Field::weight_decay, 0.5}});
  named.request_id = "a";
  const ChangeRequest* const requests[] = {&one, &stale, &named, &named};
  ChangeBatch batch = stage(ledger, requests, 0);
  ASSERT_EQ(batch.staged.size(), 2U);
  EXPECT_EQ(std::get<ChangeBatch::Accepted>(batch.answers[0]).revision, 1);
  EXPECT_EQ(std::get<Refusal>(batch.answers[1]).reason, "ETAG_MISMATCH");
  EXPECT_EQ(std::get<ChangeBatch::Accepted>(batch.answers[2]).revision, 2);
  EXPECT_EQ(std::get<ChangeLedger::Replay>(batch.answers[3]).revision, 2);
  const std::string etag = ledger.etag();
  ledger.close_step(0);
  EXPECT_FALSE(publish(ledger, batch)) << "step 2 can no longer be reached";
  EXPECT_EQ(ledger.etag(), etag);
  batch = stage(ledger, requests, 1);
  ledger.close_step(1);
  EXPECT_TRUE(publish(ledger, batch));
  EXPECT_EQ(ledger.newest_revision(), 2);
  EXPECT_EQ(ledger.change(2).effective_step, 4);
}

TEST(CommitMargin, SparesTheMostOfTheLastBatchesAndDoublesWhenItMissed) {
  CommitMargin margin;
  EXPECT_EQ(margin.spare_steps(), 0);
  margin.published(3);
  for (int i = 0; i < 7; ++i) margin.published(0);
  EXPECT_EQ(margin.spare_steps(), 3);
  margin.published(0);
  EXPECT_EQ(margin.spare_steps(), 0);
  margin.missed(1);
  margin.missed(1);
  margin.missed(1);
  EXPECT_EQ(margin.spare_steps(), 4);
}

TEST(ChangeLedger, AnswersForWhatItHasForgotten) {
  ChangeLedger ledger = two_groups();
  ChangeRequest named = request_of({{"*", Field::eps, 1e-6}});
  named.request_id = "once";
  accept(ledger, named);  // 1: will be applied
  ChangeRequest late = request_of({{"*", Field::eps, 1e-7}});
  late.apply_at_step = 50;
  accept(ledger, late);  // 2: will be cancelled
  ChangeRequest cancellation;
  cancellation.actor = "uid:1";
  cancellation.cancels = 2;
  accept(ledger, cancellation);  // 3
  late.apply_at_step = 60;
  accept(ledger, late);  // 4: stays scheduled
  EXPECT_EQ(ledger.entries(0, 4).size(), 4u);
  ledger.close_step(0);
  ledger.close_step(1);
  ledger.observe(report_of(ledger, 2));
  const std::string etag = ledger.etag();
  const Settings before = ledger.settings_at(100);

  EXPECT_THAT(ledger.settled(2), testing::ElementsAre(1, 2)) << "the oldest first";
  const std::vector<int64_t> settled = ledger.settled(100);
  EXPECT_THAT(settled, testing::ElementsAre(1, 2, 3));
  ledger.forget(settled);
  EXPECT_EQ(ledger.held(), 1u);
  EXPECT_EQ(ledger.find(1), nullptr);
  EXPECT_NE(ledger.find(4), nullptr);
  EXPECT_EQ(ledger.state_of(1), ChangeState::applied);
  EXPECT_EQ(ledger.state_of(2), ChangeState::cancelled);
  EXPECT_EQ(ledger.state_of(3), ChangeState::applied);
  EXPECT_EQ(ledger.state_of(4), ChangeState::scheduled);
  EXPECT_EQ(ledger.etag(), etag);
  EXPECT_EQ(ledger.settings_at(100).groups[0].eps, before.groups[0].eps);

  const auto replay = ledger.propose(named);
  ASSERT_TRUE(std::holds_alternative<ChangeLedger::Replay>(replay));
  EXPECT_EQ(std::get<ChangeLedger::Replay>(replay).revision, 1);
  named.reason = "another";
  EXPECT_EQ(refusal_of(ledger, named), "REQUEST_ID_REUSED");
  const auto refusal_to_cancel = [&](int64_t revision) {
    cancellation.cancels = revision;
    const auto verdict = ledger.propose(cancellation);
    return std::get<Refusal>(verdict).message;
  };
  EXPECT_THAT(refusal_to_cancel(1), HasSubstr("has been used"));
  EXPECT_THAT(refusal_to_cancel(2), HasSubstr("was cancelled before"));
  EXPECT_THAT(refusal_to_cancel(3), HasSubstr("is a cancellation"));
  EXPECT_EQ(accept(ledger, request_of({{"*", Field::eps, 1e-5}})).revision, 5);
  EXPECT_EQ(ledger.entries(4, 5).size(), 1u);

  EXPECT_THAT(ledger.end_run(), testing::ElementsAre(4, 5));
  ledger.forget(ledger.settled(100));
  EXPECT_EQ(ledger.held(), 0u);
  EXPECT_EQ(ledger.state_of(4), ChangeState::rejected);
}

TEST(ChangeLedger, ManyChangesTakeLittleMemory) {
  constexpr int64_t kChanges = 250'000;
  constexpr int64_t kPerStep = 100;
  constexpr size_t kMegabyte = 1 << 20;
  ChangeLedger ledger = two_groups();
  const size_t before = ::mallinfo2().uordblks;
  size_t most_held = 0, most_bytes = 0;
  for (int64_t step = 0; step < kChanges / kPerStep; ++step) {
    for (int64_t i = 0; i < kPerStep; ++i) {
      ChangeRequest request = request_of({{"*", Field::eps, 1e-8 * static_cast<double>(1 + i)}});
      request.request_id = std::to_string(step * kPerStep + i);
      request.reason = std::string(kReasonBytesMax, 'r');
      accept(ledger, request);
    }
    ledger.entries(std::max<int64_t>(0, ledger.newest_revision() - kPerStep),
                   ledger.newest_revision());
    ledger.close_step(step);
    ledger.observe(report_of(ledger, step));
    ledger.forget(ledger.settled(2 * kPerStep));
    most_held = std::max(most_held, ledger.held());
    most_bytes = std::max(most_bytes, ::mallinfo2().uordblks - before);
  }
  EXPECT_EQ(ledger.newest_revision(), kChanges);
  EXPECT_LE(most_held, 4 * kPerStep);
  // A byte for each, the last 4,096 request ids, and what waits for its step.
  EXPECT_LE(most_bytes, 4 * kMegabyte);
  std::cout << kChanges << " changes: at most " << most_held << " held, "
            << static_cast<double>(most_bytes) / kMegabyte << " MiB\n";
}

ChangeLedger without_clipping() {
  return ChangeLedger({{"body", 100, options_with(0.9)}}, 0, 0, {.clips_gradients = false});
}

TEST(ChangeLedger, RefusesAClipLimitWhereTheJobCannotClip) {
  ChangeLedger ledger = without_clipping();
  const auto limit = [](double value) { return request_of({{"*", Field::max_grad_norm, value}}); };
  const auto verdict = ledger.propose(limit(1));
  ASSERT_TRUE(std::holds_alternative<Refusal>(verdict));
  const Refusal& refusal = std::get<Refusal>(verdict);
  EXPECT_EQ(refusal.kind, RefusalKind::failed_precondition);
  EXPECT_EQ(refusal.reason, "CLIPPING_FIXED");
  EXPECT_THAT(refusal.message, HasSubstr("step_in_backward"));
  EXPECT_EQ(
      refusal_of(ledger, request_of({{"*", Field::eps, 1e-6}, {"*", Field::max_grad_norm, 2}})),
      "CLIPPING_FIXED")
      << "a change is taken as a whole";
  EXPECT_EQ(accept(ledger, limit(0)).revision, 1) << "off is what the job does";
  EXPECT_EQ(accept(ledger, request_of({{"*", Field::eps, 1e-6}})).revision, 2);
  EXPECT_EQ(ledger.settings_at(100).max_grad_norm, 0);

  const auto again = without_clipping().propose_again(limit(1), 5);
  ASSERT_TRUE(std::holds_alternative<Refusal>(again)) << "from the log of an attempt that clipped";
  EXPECT_EQ(std::get<Refusal>(again).reason, "CLIPPING_FIXED");
  EXPECT_EQ(refusal_of(two_groups(), limit(1)), "accepted") << "in a job that clips";
}

TEST(ChangeSchedule, RefusesAClipLimitWhereTheJobCannotClip) {
  ScheduledChange change{.request = request_of({{"*", Field::max_grad_norm, 1}}),
                         .where = "file:3"};
  change.request.apply_at_step = 4;
  try {
    const ChangeSchedule schedule(without_clipping(), std::span(&change, 1));
    ADD_FAILURE() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("file:3"));
    EXPECT_THAT(error.what(), HasSubstr("step_in_backward"));
  }
}

TEST(ChangeSchedule, NamesThePlaceOfWhatCannotBe) {
  ScheduledChange change{.request = request_of({{"nobody", Field::eps, 1e-6}}), .where = "file:3"};
  change.request.apply_at_step = 0;
  try {
    const ChangeSchedule schedule(two_groups(), std::span(&change, 1));
    ADD_FAILURE() << "taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("file:3: there is no group 'nobody'"));
  }
  change.request.patches[0].group = "head";
  ChangeSchedule schedule(two_groups(), std::span(&change, 1));
  EXPECT_EQ(schedule.newest_revision(), 1);
  EXPECT_EQ(schedule.entries(0, 1)[0].effective_step, 0);
}

}  // namespace
}  // namespace fusedbun::changes
