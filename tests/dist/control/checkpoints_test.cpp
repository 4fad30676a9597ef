// The RPCs about checkpoints through the real socket, with a rank that steps when the test says so.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Checkpoints : public testing::Test {
 protected:
  explicit Checkpoints(int64_t total_steps = 100)
      : server_(options_in(folder_.path()), job_of(total_steps)),
        rank_(server_.port()),
        client_({.run_dir = folder_.path()}),
        stub_(v1::TrainingControl::NewStub(
            grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()))) {
    server_.offer_checkpoints({found_checkpoint()});
    server_.set_state(JobState::running);
  }

  static JobDescription job_of(int64_t total_steps) {
    JobDescription job = two_group_job();
    job.total_steps = total_steps;
    return job;
  }
  /// The reason of the refusal, or the step.
  std::string answer(const v1::CreateCheckpointRequest& wanted = {}) {
    grpc::ClientContext context;
    v1::CreateCheckpointRequest request = wanted;
    request.set_parent("jobs/-");
    v1::Checkpoint reply;
    const grpc::Status status = stub_->CreateCheckpoint(&context, request, &reply);
    return status.ok() ? std::to_string(reply.step()) : reason_of(status).reason;
  }
  v1::Checkpoint checkpoint(int64_t step) {
    return client_.checkpoint("jobs/-/checkpoints/" + std::to_string(step));
  }
  void steps_until(int64_t done) {
    while (rank_.next_step() < done) rank_.step();
  }
  /// What a client that watches from the beginning has seen of checkpoints, until the job has ended.
  std::vector<std::string> told() {
    std::vector<std::string> lines;
    client_.watch(0, [&](const v1::JobEvent& event) {
      if (event.has_checkpoint()) {
        lines.push_back(std::to_string(event.checkpoint().step()) + " " +
                        v1::Checkpoint::State_Name(event.checkpoint().state()));
      }
      return event.job().state() != v1::Job::SUCCEEDED;
    });
    return lines;
  }

  TemporaryFolder folder_;
  ControlServer server_;
  FakeRank rank_;
  ControlClient client_;
  std::unique_ptr<v1::TrainingControl::Stub> stub_;
};

TEST_F(Checkpoints, OneThatIsAskedForIsSavedAfterExactlyItsStep) {
  steps_until(5);
  v1::CreateCheckpointRequest request;
  request.set_reason("before the higher lr");
  const v1::Checkpoint asked = client_.create_checkpoint(request);
  EXPECT_EQ(asked.name(), "jobs/test/checkpoints/7") << "step 5's header tells, step 6 hears";
  EXPECT_EQ(asked.state(), v1::Checkpoint::CREATING);
  EXPECT_THAT(asked.actor(), HasSubstr("uid:"));
  EXPECT_EQ(asked.reason(), "before the higher lr");
  rank_.step();
  EXPECT_FALSE(rank_.checkpoint_requested());
  rank_.step();
  EXPECT_EQ(rank_.next_step(), 7);
  ASSERT_TRUE(rank_.checkpoint_requested());
  server_.save_started(7);
  rank_.step();
  EXPECT_FALSE(rank_.checkpoint_requested()) << "after one step only";
  server_.checkpoint_durable({.job_step = 7,
                              .bytes = 4096,
                              .world_size = 2,
                              .digest = "0123456789abcdef",
                              .folder = "/runs/a/checkpoints/step-7",
                              .written_us = 1});
  const v1::Checkpoint saved = checkpoint(7);
  EXPECT_EQ(saved.state(), v1::Checkpoint::ACTIVE);
  EXPECT_EQ(saved.bytes(), 4096);
  EXPECT_EQ(saved.world_size(), 2);
  EXPECT_EQ(saved.digest(), "0123456789abcdef");
  EXPECT_EQ(saved.uri(), "file:///runs/a/checkpoints/step-7");
  EXPECT_EQ(saved.reason(), "before the higher lr");
  EXPECT_EQ(client_.job().last_checkpoint(), "jobs/test/checkpoints/7");
  server_.set_state(JobState::succeeded);
  EXPECT_THAT(told(), ElementsAre("7 CREATING", "7 ACTIVE"));
}

TEST_F(Checkpoints, AFailureIsSeenInTheJobInItsEventsAndInTheCheckpoint) {
  EXPECT_EQ(client_.job().last_checkpoint(), "jobs/test/checkpoints/7") << "found in the folder";
  steps_until(20);
  server_.save_started(20);
  server_.save_failed(20, "rank 1: cannot write step-20.tmp: No space left on device");
  EXPECT_THAT(client_.job().last_checkpoint_error(), HasSubstr("No space left on device"));
  EXPECT_EQ(client_.job().last_checkpoint(), "jobs/test/checkpoints/7");
  EXPECT_EQ(checkpoint(20).state(), v1::Checkpoint::FAILED);
  EXPECT_EQ(checkpoint(20).error_reason(), "WRITE_FAILED");
  server_.save_started(30);
  server_.checkpoint_durable({.job_step = 30});
  server_.checkpoint_deleted(7);
  EXPECT_EQ(client_.job().last_checkpoint_error(), "");
  server_.set_state(JobState::succeeded);
  EXPECT_THAT(told(),
              ElementsAre("20 CREATING", "20 FAILED", "30 CREATING", "30 ACTIVE", "7 DELETED"));
}

TEST_F(Checkpoints, WhatCannotBeSavedIsRefused) {
  v1::CreateCheckpointRequest request;
  request.set_reason(std::string(300, 'x'));
  EXPECT_EQ(answer(request), "REASON_TOO_LONG");
  request.set_reason("two\nlines");
  EXPECT_EQ(answer(request), "CONTROL_CHARACTER");
  steps_until(10);
  server_.save_started(10);
  EXPECT_EQ(answer(), "SAVE_UNDER_WAY");
  server_.checkpoint_durable({.job_step = 10});
  EXPECT_EQ(answer(), "12");
  rank_.step();
  rank_.step();
  rank_.step();
  EXPECT_EQ(checkpoint(12).error_reason(), "NOT_SAVED");
  steps_until(98);
  request.clear_reason();
  request.set_validate_only(true);
  EXPECT_EQ(answer(request), "100") << "after the last step";
  steps_until(99);
  EXPECT_EQ(answer(), "STEP_AFTER_END");
}

TEST(CheckpointsOfNone, AJobThatSavesNoneSaysSo) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  ControlClient client({.run_dir = folder.path()});
  EXPECT_THROW(client.create_checkpoint({}), ConfigError);
  EXPECT_EQ(client.checkpoints().checkpoints_size(), 0);
  EXPECT_EQ(client.job().last_checkpoint(), "");
}

TEST_F(Checkpoints, ValidateOnlyAsksForNothing) {
  v1::CreateCheckpointRequest request;
  request.set_validate_only(true);
  request.set_request_id("dry");
  const v1::Checkpoint would = client_.create_checkpoint(request);
  EXPECT_EQ(would.step(), 2);
  EXPECT_EQ(would.state(), v1::Checkpoint::STATE_UNSPECIFIED);
  steps_until(5);
  EXPECT_FALSE(rank_.checkpoint_requested());
  EXPECT_THROW(checkpoint(2), ConfigError);
  request.set_validate_only(false);
  EXPECT_EQ(answer(request), "7") << "its id was not used";
  steps_until(6);
  EXPECT_EQ(answer(request), "7") << "the same request";
}

TEST_F(Checkpoints, TheyAreListedByPagesInOrderOfStep) {
  for (int64_t step = 10; step <= 50; step += 10) {
    server_.save_started(step);
    server_.checkpoint_durable({.job_step = step});
  }
  std::vector<int64_t> steps;
  v1::ListCheckpointsRequest request;
  request.set_page_size(4);
  int pages = 0;
  do {
    const v1::ListCheckpointsResponse page = client_.checkpoints(request);
    for (const v1::Checkpoint& each : page.checkpoints()) steps.push_back(each.step());
    request.set_page_token(page.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_THAT(steps, ElementsAre(7, 10, 20, 30, 40, 50));
  EXPECT_EQ(pages, 2);
  request.set_page_token("x");
  EXPECT_THROW(client_.checkpoints(request), ConfigError);
  for (const char* name : {"checkpoints/8", "checkpoints/", "checkpoints/7x", "changes/7", ""})
    EXPECT_THROW(client_.checkpoint(std::string("jobs/-/") + name), ConfigError) << name;
}

TEST_F(Checkpoints, TheEndOfTheRunIsTheEndOfWhatWasAskedFor) {
  EXPECT_EQ(answer(), "2");
  server_.set_state(JobState::failed, "rank 1 is lost");
  EXPECT_EQ(checkpoint(2).error_reason(), "RUN_ENDED");
}

}  // namespace
}  // namespace fusedbun::control
