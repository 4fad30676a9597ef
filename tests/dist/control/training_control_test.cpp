// The service through its real socket, with a loop that calls the real port.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using testing::Each;
using testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class TrainingControl : public testing::Test {
 protected:
  TrainingControl()
      : server_(options_in(folder_.path()), two_group_job()),
        client_({.run_dir = folder_.path()}),
        stub_(v1::TrainingControl::NewStub(
            grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()))) {
    server_.set_state(JobState::running);
  }

  static v1::CreateChangeRequest change_of(const std::string& group,
                                           std::function<void(v1::HyperparameterValues&)> set) {
    v1::CreateChangeRequest request;
    request.set_parent("jobs/-");
    request.set_etag("*");
    v1::GroupPatch& patch = *request.mutable_change()->add_patches();
    patch.set_group(group);
    set(*patch.mutable_values());
    return request;
  }
  static v1::CreateChangeRequest learning_rate(double value, const std::string& group = "*") {
    return change_of(group,
                     [&](v1::HyperparameterValues& values) { values.set_learning_rate(value); });
  }

  grpc::Status send(const v1::CreateChangeRequest& request, v1::Change* reply = nullptr) {
    grpc::ClientContext context;
    v1::Change ignored;
    return stub_->CreateChange(&context, request, reply == nullptr ? &ignored : reply);
  }
  std::string refusal(const v1::CreateChangeRequest& request) {
    const grpc::Status status = send(request);
    return status.ok() ? "accepted" : reason_of(status).reason;
  }

  TemporaryFolder folder_;
  ControlServer server_;
  ControlClient client_;
  std::unique_ptr<v1::TrainingControl::Stub> stub_;
};

TEST_F(TrainingControl, ShowsTheJob) {
  FakeLoop loop(server_.port());
  ASSERT_TRUE(loop.wait_for_step(3));
  const v1::Job job = client_.job();
  EXPECT_EQ(job.name(), "jobs/test");
  EXPECT_EQ(job.state(), v1::Job::RUNNING);
  EXPECT_GE(job.step(), 3);
  EXPECT_EQ(job.total_steps(), 1'000'000);
  EXPECT_EQ(job.world_size(), 2);
  EXPECT_EQ(job.backend(), "local");
  EXPECT_TRUE(job.has_last_step_time());
}

TEST_F(TrainingControl, AChangeIsUsedFromExactlyItsStepOn) {
  FakeLoop loop(server_.port());
  v1::CreateChangeRequest request = learning_rate(3e-4);
  request.mutable_change()->set_reason("loss spikes");
  const v1::Change change = client_.create_change(request);
  EXPECT_EQ(change.state(), v1::Change::SCHEDULED);
  EXPECT_EQ(change.name(), "jobs/test/changes/1");
  EXPECT_EQ(change.reason(), "loss spikes");
  EXPECT_THAT(change.actor(), HasSubstr("uid:"));
  EXPECT_FALSE(change.previous().groups(0).values().has_learning_rate());
  EXPECT_EQ(change.resulting().groups(0).values().learning_rate(), 3e-4);
  ASSERT_TRUE(loop.wait_for_step(change.effective_step() + 3));
  const std::vector<double> used = loop.learning_rates();
  for (int64_t step = 0; step < static_cast<int64_t>(used.size()); ++step) {
    EXPECT_EQ(used[step], step < change.effective_step() ? 1e-3 : 3e-4) << "step " << step;
  }
  EXPECT_EQ(client_.change(change.name()).state(), v1::Change::APPLIED);
  EXPECT_EQ(client_.job().config_revision(), 1);
}

TEST_F(TrainingControl, ScaleAndPinAndScheduleMakeTheLearningRate) {
  FakeLoop loop(server_.port());
  client_.create_change(change_of("*", [](auto& values) { values.set_lr_scale(0.5); }));
  const v1::Change pin = client_.create_change(learning_rate(0.25, "head"));
  ASSERT_TRUE(loop.wait_for_step(pin.effective_step()));
  const v1::Hyperparameters all = client_.hyperparameters();
  EXPECT_EQ(all.job_values().lr_scale(), 0.5);
  EXPECT_EQ(all.groups(0).scheduled_learning_rate(), 1e-3);
  EXPECT_EQ(all.groups(0).effective_learning_rate(), 5e-4);
  EXPECT_FALSE(all.groups(0).values().has_learning_rate());
  EXPECT_EQ(all.groups(1).values().learning_rate(), 0.25);
  EXPECT_EQ(all.groups(1).effective_learning_rate(), 0.25);
  client_.create_change(
      change_of("head", [](auto& values) { values.set_unpin_learning_rate(true); }));
  EXPECT_EQ(client_.hyperparameters().groups(1).effective_learning_rate(), 5e-4);
}

TEST_F(TrainingControl, ALaterStepIsHonouredAndATooNearOneRefused) {
  FakeLoop loop(server_.port());
  v1::CreateChangeRequest request = learning_rate(0.5);
  request.mutable_change()->set_apply_at_step(client_.hyperparameters().effective_step() + 30);
  const v1::Change change = client_.create_change(request);
  EXPECT_EQ(change.effective_step(), request.change().apply_at_step());
  ASSERT_TRUE(loop.wait_for_step(change.effective_step()));
  EXPECT_EQ(loop.learning_rates()[change.effective_step() - 1], 1e-3);
  EXPECT_EQ(loop.learning_rates()[change.effective_step()], 0.5);
  request.mutable_change()->set_apply_at_step(1);
  EXPECT_EQ(send(request).error_code(), grpc::StatusCode::OUT_OF_RANGE);
}

TEST_F(TrainingControl, ValidateOnlyChangesNothing) {
  const v1::Hyperparameters before = client_.hyperparameters();
  v1::CreateChangeRequest request = learning_rate(0.5);
  request.set_validate_only(true);
  request.set_etag(before.etag());
  request.set_request_id("dry");
  v1::Change reply;
  ASSERT_TRUE(send(request, &reply).ok());
  EXPECT_EQ(reply.state(), v1::Change::STATE_UNSPECIFIED);
  EXPECT_EQ(reply.revision(), 0);
  EXPECT_EQ(reply.resulting().groups(0).values().learning_rate(), 0.5);
  EXPECT_EQ(client_.hyperparameters().SerializeAsString(), before.SerializeAsString());
  EXPECT_EQ(client_.changes().changes_size(), 0);
  request.mutable_change()->mutable_patches(0)->mutable_values()->set_learning_rate(kNan);
  EXPECT_EQ(refusal(request), "NOT_FINITE");
}

TEST_F(TrainingControl, RefusesHostileRequestsAndStaysAsItWas) {
  const std::string before = client_.hyperparameters().SerializeAsString();
  EXPECT_EQ(refusal(learning_rate(kNan)), "NOT_FINITE");
  EXPECT_EQ(refusal(learning_rate(-HUGE_VAL)), "NOT_FINITE");
  EXPECT_EQ(refusal(learning_rate(-1)), "OUT_OF_SPEC");
  EXPECT_EQ(refusal(learning_rate(1, "nobody")), "UNKNOWN_GROUP");
  EXPECT_EQ(refusal(change_of("*", [](auto&) {})), "EMPTY_CHANGE");
  EXPECT_EQ(refusal(change_of("*",
                              [](auto& values) {
                                values.GetReflection()->MutableUnknownFields(&values)->AddVarint(77,
                                                                                                 1);
                              })),
            "UNKNOWN_FIELD");
  v1::CreateChangeRequest masked = learning_rate(1);
  masked.mutable_change()->mutable_patches(0)->mutable_update_mask()->add_paths("accumulator");
  EXPECT_EQ(refusal(masked), "UNKNOWN_FIELD");
  masked.mutable_change()->mutable_patches(0)->mutable_update_mask()->set_paths(0, "eps");
  EXPECT_EQ(refusal(masked), "MASK_WITHOUT_VALUE");
  v1::CreateChangeRequest other_job = learning_rate(1);
  other_job.set_parent("jobs/another");
  EXPECT_EQ(refusal(other_job), "UNKNOWN_JOB");
  v1::CreateChangeRequest many = learning_rate(1);
  for (int i = 0; i < 5000; ++i) *many.mutable_change()->add_patches() = many.change().patches(0);
  EXPECT_EQ(refusal(many), "TOO_MANY_VALUES");
  v1::CreateChangeRequest huge = learning_rate(1);
  huge.mutable_change()->set_reason(std::string(1 << 20, 'x'));
  EXPECT_EQ(send(huge).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(client_.hyperparameters().SerializeAsString(), before);
}

TEST_F(TrainingControl, TheMaskSaysWhichValuesAreMeant) {
  v1::CreateChangeRequest request = change_of("body", [](v1::HyperparameterValues& values) {
    values.set_eps(0.5);
    values.set_weight_decay(0.5);
  });
  request.mutable_change()->mutable_patches(0)->mutable_update_mask()->add_paths("eps");
  const v1::Change change = client_.create_change(request);
  EXPECT_EQ(change.resulting().groups(0).values().eps(), 0.5);
  EXPECT_EQ(change.resulting().groups(0).values().weight_decay(), 0.01);
  EXPECT_FALSE(change.patches(0).values().has_weight_decay());
}

TEST_F(TrainingControl, ARepeatedRequestGetsTheFirstAnswer) {
  FakeLoop loop(server_.port());
  v1::CreateChangeRequest request = learning_rate(0.5);
  request.set_request_id("f0e7c1b2");
  v1::Change first;
  ASSERT_TRUE(send(request, &first).ok());
  ASSERT_TRUE(loop.wait_for_step(first.effective_step()));
  v1::Change second;
  ASSERT_TRUE(send(request, &second).ok());
  EXPECT_EQ(first.SerializeAsString(), second.SerializeAsString());
  EXPECT_EQ(client_.changes().changes_size(), 1);
}

TEST_F(TrainingControl, ListsChangesInPagesAndByState) {
  for (int i = 1; i <= 5; ++i) client_.create_change(learning_rate(i));
  v1::ListChangesRequest request;
  request.set_page_size(2);
  std::vector<int64_t> revisions;
  do {
    const v1::ListChangesResponse page = client_.changes(request);
    EXPECT_LE(page.changes_size(), 2);
    for (const v1::Change& change : page.changes()) revisions.push_back(change.revision());
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_THAT(revisions, testing::ElementsAre(1, 2, 3, 4, 5));
  request.set_filter("state=APPLIED");
  EXPECT_EQ(client_.changes(request).changes_size(), 0);
  request.set_filter("colour=red");
  EXPECT_THROW(client_.changes(request), ConfigError);
  EXPECT_THROW(client_.change("jobs/-/changes/6"), ConfigError);
  EXPECT_THROW(client_.change("jobs/-/changes/-1"), ConfigError);
}

// Of settled changes the ledger keeps a byte; the rest comes from a file.
TEST_F(TrainingControl, OldChangesAreShownAsTheyWere) {
  constexpr int kChanges = 40;
  std::vector<v1::Change> created;
  {
    FakeRank rank(server_.port());
    for (int i = 1; i <= kChanges; ++i) {
      v1::CreateChangeRequest request = learning_rate(i, i % 2 == 0 ? "*" : "body");
      request.set_request_id("r" + std::to_string(i));
      request.mutable_change()->set_reason("number " + std::to_string(i));
      created.push_back(client_.create_change(request));
      rank.step();
    }
    for (int i = 0; i < 4; ++i) rank.step();
  }
  for (int i = 1; i <= kChanges; ++i) {
    v1::Change expected = created[i - 1];
    expected.set_state(v1::Change::APPLIED);
    EXPECT_EQ(client_.change(expected.name()).SerializeAsString(), expected.SerializeAsString());
    v1::CreateChangeRequest again = learning_rate(i, i % 2 == 0 ? "*" : "body");
    again.set_request_id("r" + std::to_string(i));
    again.mutable_change()->set_reason("number " + std::to_string(i));
    EXPECT_EQ(client_.create_change(again).SerializeAsString(), created[i - 1].SerializeAsString());
  }
  v1::ListChangesRequest list;
  list.set_filter("state=APPLIED");
  const v1::ListChangesResponse applied = client_.changes(list);
  ASSERT_EQ(applied.changes_size(), kChanges);
  for (int i = 1; i <= kChanges; ++i) EXPECT_EQ(applied.changes(i - 1).revision(), i);
  list.set_filter("state=SCHEDULED");
  EXPECT_EQ(client_.changes(list).changes_size(), 0);
}

TEST_F(TrainingControl, SpecsAreTheTableOfThePlan) {
  const v1::ListHyperparameterSpecsResponse specs = client_.specs();
  ASSERT_EQ(specs.specs_size(), static_cast<int>(changes::field_specs().size()));
  for (const v1::HyperparameterSpec& spec : specs.specs()) {
    const auto* field = v1::HyperparameterValues::descriptor()->FindFieldByName(spec.field());
    ASSERT_NE(field, nullptr) << spec.field();
    EXPECT_EQ(field->number(), static_cast<int>(changes::find_field(spec.field())->field));
  }
}

TEST_F(TrainingControl, DrainLeavesAtABoundaryAndTakesNoMoreChanges) {
  FakeLoop loop(server_.port());
  const v1::Job first = client_.drain("maintenance");
  EXPECT_EQ(first.state(), v1::Job::DRAINING);
  EXPECT_THAT(first.state_reason(), HasSubstr("maintenance"));
  EXPECT_EQ(client_.drain("again").state_reason(), first.state_reason());
  EXPECT_EQ(refusal(learning_rate(1)), "DRAINING");
  EXPECT_THROW(client_.create_change(learning_rate(1)), UnavailableError);
  for (int i = 0; i < 5000 && loop.left() == changes::LeaveRequest::none; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(loop.left(), changes::LeaveRequest::drain);
  server_.set_state(JobState::running);
  EXPECT_EQ(client_.job().state(), v1::Job::DRAINING) << "the state only moves forward";
}

TEST_F(TrainingControl, StopWinsOverDrainAndEndedJobsAreLeftAlone) {
  client_.drain("");
  client_.stop("enough");
  EXPECT_EQ(server_.port().close_step(0).leave, changes::LeaveRequest::stop);
  client_.drain("too late");
  EXPECT_EQ(server_.port().close_step(1).leave, changes::LeaveRequest::stop);
  server_.set_state(JobState::stopped, "stopped at step 2");
  EXPECT_THROW(client_.stop(""), ConfigError);
  EXPECT_EQ(refusal(learning_rate(1)), "JOB_ENDED");
  EXPECT_EQ(client_.job().state_reason(), "stopped at step 2");
}

TEST_F(TrainingControl, AStepThatNeverComesRejectsItsChange) {
  v1::CreateChangeRequest request = learning_rate(1);
  request.mutable_change()->set_apply_at_step(500);
  const std::string name = client_.create_change(request).name();
  server_.set_state(JobState::succeeded);
  const v1::Change change = client_.change(name);
  EXPECT_EQ(change.state(), v1::Change::REJECTED);
  EXPECT_THAT(change.error(), HasSubstr("step 500"));
}

TEST_F(TrainingControl, EtagsAreAskedForAndConflictsNamed) {
  v1::CreateChangeRequest request = learning_rate(1);
  request.clear_etag();
  EXPECT_EQ(refusal(request), "ETAG_REQUIRED");
  request.set_etag(client_.hyperparameters().etag());
  client_.create_change(request);
  const grpc::Status status = send(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(reason_of(status).metadata.at("etag"), client_.hyperparameters().etag());
  EXPECT_THROW(client_.create_change(request), EtagConflict);
}

TEST_F(TrainingControl, AScheduledChangeIsTakenBack) {
  v1::CreateChangeRequest request = learning_rate(0.5);
  request.mutable_change()->set_apply_at_step(60);
  const v1::Change change = client_.create_change(request);
  const std::string etag = client_.hyperparameters().etag();
  v1::CancelChangeRequest cancel;
  cancel.set_name(change.name());
  cancel.set_reason("no longer needed");
  cancel.set_request_id("once");
  const v1::Change cancelled = client_.cancel_change(cancel);
  EXPECT_EQ(cancelled.state(), v1::Change::CANCELLED);
  EXPECT_EQ(cancelled.cancelled_by(), 2);
  EXPECT_NE(client_.hyperparameters().etag(), etag);
  EXPECT_EQ(client_.cancel_change(cancel).cancelled_by(), 2) << "the same request";
  const v1::Change cancellation = client_.change("jobs/-/changes/2");
  EXPECT_EQ(cancellation.cancels(), 1);
  EXPECT_EQ(cancellation.state(), v1::Change::APPLIED);
  EXPECT_EQ(cancellation.reason(), "no longer needed");

  FakeLoop loop(server_.port());
  ASSERT_TRUE(loop.wait_for_step(65));
  EXPECT_THAT(loop.learning_rates(), Each(1e-3));
  cancel.clear_request_id();
  EXPECT_THROW(client_.cancel_change(cancel), ConfigError) << "is cancelled";
  cancel.set_name("jobs/-/changes/2");
  EXPECT_THROW(client_.cancel_change(cancel), ConfigError) << "is a cancellation";
  cancel.set_name(client_.create_change(learning_rate(0.5)).name());
  EXPECT_TRUE(loop.wait_for_step(client_.change(cancel.name()).effective_step()));
  EXPECT_THROW(client_.cancel_change(cancel), ConfigError) << "was used";
}

TEST(TrainingControlStart, ChangesWaitUntilTheJobRuns) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  ControlClient client({.run_dir = folder.path()});
  EXPECT_EQ(client.job().state(), v1::Job::STARTING);
  v1::CreateChangeRequest request;
  request.set_etag("*");
  request.mutable_change()->add_patches()->set_group("*");
  request.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1);
  EXPECT_THROW(client.create_change(request), UnavailableError);
  server.set_state(JobState::running);
  EXPECT_EQ(client.create_change(request).revision(), 1);
}

TEST(TrainingControlStart, AClipLimitIsRefusedWhereTheJobCannotClip) {
  const TemporaryFolder folder;
  JobDescription job = two_group_job();
  job.max_grad_norm = 0;
  job.capabilities.clips_gradients = false;
  ControlServer server(options_in(folder.path()), job);
  server.set_state(JobState::running);
  ControlClient client({.run_dir = folder.path()});
  v1::CreateChangeRequest request;
  request.set_parent("jobs/-");
  request.set_etag("*");
  request.mutable_change()->add_patches()->set_group("*");
  request.mutable_change()->mutable_patches(0)->mutable_values()->set_max_grad_norm(1);
  const auto stub = v1::TrainingControl::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  for (const bool validate_only : {true, false}) {
    grpc::ClientContext context;
    v1::Change reply;
    request.set_validate_only(validate_only);
    const grpc::Status status = stub->CreateChange(&context, request, &reply);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(reason_of(status).reason, "CLIPPING_FIXED");
    EXPECT_THAT(status.error_message(), HasSubstr("step_in_backward"));
  }
  EXPECT_EQ(client.hyperparameters().revision(), 0);
  const v1::ListHyperparameterSpecsResponse specs = client.specs();
  const auto clip = std::ranges::find(specs.specs(), "max_grad_norm",
                                      [](const auto& spec) { return spec.field(); });
  ASSERT_NE(clip, specs.specs().end());
  EXPECT_EQ(clip->max(), 0);
}

// ---- lists --------------------------------------------------------------------------------------

TEST(ListChanges, PagesFitIntoAMessageAndWhatIsNewCanBeAskedForAlone) {
  const TemporaryFolder folder;
  JobDescription job = two_group_job();
  for (int i = 0; i < 60; ++i) {
    job.groups.push_back(job.groups[0]);
    job.groups.back().name = "more" + std::to_string(i);
  }
  ControlServer server(options_in(folder.path()), job);
  server.set_state(JobState::running);
  const auto stub = v1::TrainingControl::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  constexpr int kChanges = 600;  // about 8 MB
  ControlClient client({.run_dir = folder.path()});
  v1::CreateChangeRequest request;
  request.set_etag("*");
  v1::GroupPatch& patch = *request.mutable_change()->add_patches();
  patch.set_group("*");
  for (int i = 0; i < kChanges; ++i) {
    patch.mutable_values()->set_eps(1e-6 * (i + 1));
    client.create_change(request);
  }
  const auto page = [&](const std::string& filter, const std::string& token) {
    v1::ListChangesRequest list;
    list.set_parent("jobs/-");
    list.set_page_size(1000);
    list.set_filter(filter);
    list.set_page_token(token);
    grpc::ClientContext context;
    v1::ListChangesResponse reply;
    const grpc::Status status = stub->ListChanges(&context, list, &reply);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return reply;
  };
  const auto all = [&](const std::string& filter) {
    std::vector<int64_t> revisions;
    std::string token;
    do {
      const v1::ListChangesResponse reply = page(filter, token);
      EXPECT_LT(reply.ByteSizeLong(), size_t{2} << 20);
      for (const v1::Change& change : reply.changes()) revisions.push_back(change.revision());
      token = reply.next_page_token();
    } while (!token.empty() && !testing::Test::HasFailure());
    return revisions;
  };
  const std::vector<int64_t> every = all("");
  ASSERT_EQ(every.size(), kChanges);
  for (int64_t i = 0; i < kChanges; ++i) ASSERT_EQ(every[i], i + 1);
  EXPECT_THAT(all("revision>597"), testing::ElementsAre(598, 599, 600));
  EXPECT_THAT(all("revision>600"), testing::IsEmpty());
  EXPECT_THAT(all("state=SCHEDULED AND revision>598"), testing::ElementsAre(599, 600));
  EXPECT_THAT(all("revision>598 AND state=APPLIED"), testing::IsEmpty());
  for (const char* wrong :
       {"revision>", "revision>x", "revision>-1", "revision>1x", "revision=1",
        "state=SCHEDULED AND", "AND", "state=", "revision>99999999999999999999"}) {
    v1::ListChangesRequest list;
    list.set_parent("jobs/-");
    list.set_filter(wrong);
    grpc::ClientContext context;
    v1::ListChangesResponse reply;
    EXPECT_EQ(reason_of(stub->ListChanges(&context, list, &reply)).reason, "BAD_FILTER") << wrong;
  }
}

// ---- leaving ------------------------------------------------------------------------------------

TEST_F(TrainingControl, ADrainSaysThatTheMachineIsTakenAwayAndItsRequestIdIsItsOwn) {
  v1::DrainJobRequest request;
  request.set_name("jobs/-");
  request.set_reason("spot");
  request.set_request_id("one");
  request.set_preempted(true);
  const auto drain = [&] {
    grpc::ClientContext context;
    v1::Job job;
    const grpc::Status status = stub_->DrainJob(&context, request, &job);
    return status.ok() ? job.state_reason() : reason_of(status).reason;
  };
  const std::string first = drain();
  EXPECT_THAT(first, HasSubstr("the machine is about to be taken away: spot"));
  EXPECT_EQ(drain(), first);
  request.set_reason("another");
  EXPECT_EQ(drain(), "REQUEST_ID_REUSED");
  request.set_request_id(std::string(65, 'x'));
  EXPECT_EQ(drain(), "REQUEST_ID_TOO_LONG");
  grpc::ClientContext context;
  v1::StopJobRequest stop;
  stop.set_name("jobs/-");
  stop.set_request_id("one");
  v1::Job job;
  EXPECT_EQ(reason_of(stub_->StopJob(&context, stop, &job)).reason, "REQUEST_ID_REUSED");
}

/// A field that a later version of the contract may have.
template <class Request>
Request with_unknown_field(Request request) {
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(999, 1);
  return request;
}

TEST_F(TrainingControl, AFieldThatThisVersionDoesNotKnowIsRefusedInEveryCallThatChangesSomething) {
  v1::DrainJobRequest drain;
  drain.set_name("jobs/-");
  v1::StopJobRequest stop;
  stop.set_name("jobs/-");
  v1::CancelChangeRequest cancel;
  client_.create_change(learning_rate(0.5));
  cancel.set_name("jobs/-/changes/1");
  v1::Job job;
  v1::Change change;
  grpc::ClientContext contexts[4];
  EXPECT_EQ(reason_of(stub_->DrainJob(&contexts[0], with_unknown_field(drain), &job)).reason,
            "UNKNOWN_FIELD");
  EXPECT_EQ(reason_of(stub_->StopJob(&contexts[1], with_unknown_field(stop), &job)).reason,
            "UNKNOWN_FIELD");
  EXPECT_EQ(
      reason_of(stub_->CancelChange(&contexts[2], with_unknown_field(cancel), &change)).reason,
      "UNKNOWN_FIELD");
  EXPECT_EQ(
      reason_of(stub_->CreateChange(&contexts[3], with_unknown_field(learning_rate(1)), &change))
          .reason,
      "UNKNOWN_FIELD");
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
}

TEST_F(TrainingControl, AChangeAfterTheEndOfTheRunIsRefused) {
  v1::CreateChangeRequest request = learning_rate(0.5);
  request.mutable_change()->set_apply_at_step(1'000'000);
  EXPECT_EQ(refusal(request), "STEP_AFTER_END");
  request.mutable_change()->set_apply_at_step(999'999);
  EXPECT_EQ(refusal(request), "accepted");
}

}  // namespace
}  // namespace fusedbun::control
