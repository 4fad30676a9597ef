// PauseJob, ResumeJob, DumpDiagnostics, and leaving by force: through the real socket, with the real port in the hands of the test.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using changes::LeaveRequest;
using testing::ElementsAre;
using testing::HasSubstr;

/// Ranks that do as they are told, and note it.
class ObedientRanks : public plan::RankOrders {
 public:
  std::vector<DumpAnswer> dump(const std::string& folder, int64_t) override {
    const std::lock_guard lock(mutex_);
    folders_.push_back(folder);
    return {{.has_answered = true, .problem = {}},
            {.has_answered = true, .problem = "rank 1: the disk is full"},
            {.has_answered = false, .problem = {}}};
  }
  void exit_all(int code, const std::string& reason) override {
    const std::lock_guard lock(mutex_);
    exits_.emplace_back(code, reason);
  }
  std::vector<std::string> folders() const {
    const std::lock_guard lock(mutex_);
    return folders_;
  }
  std::vector<std::pair<int, std::string>> exits() const {
    const std::lock_guard lock(mutex_);
    return exits_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> folders_;
  std::vector<std::pair<int, std::string>> exits_;
};

bool soon(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

class JobRequests : public testing::Test {
 protected:
  JobRequests()
      : server_(options(), two_group_job()),
        client_({.run_dir = folder_.path()}),
        stub_(v1::TrainingControl::NewStub(
            grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()))) {
    server_.set_state(JobState::running);
  }
  ControlOptions options() {
    ControlOptions options = options_in(folder_.path());
    options.notice = [this](std::string_view sentence) { notices_.emplace_back(sentence); };
    return options;
  }
  changes::ControlPort& port() { return server_.port(); }
  template <class Request, class Reply>
  std::string refusal(grpc::Status (v1::TrainingControl::Stub::*method)(grpc::ClientContext*,
                                                                        const Request&, Reply*),
                      Request request) {
    grpc::ClientContext context;
    Reply reply;
    request.set_name("jobs/-");
    const grpc::Status status = ((*stub_).*method)(&context, request, &reply);
    return status.ok() ? "OK" : reason_of(status).reason;
  }

  TemporaryFolder folder_;
  std::vector<std::string> notices_;
  ObedientRanks ranks_;  // outlives the server
  ControlServer server_;
  ControlClient client_;
  std::unique_ptr<v1::TrainingControl::Stub> stub_;
};

// ---- pause ---------------------------------------------------------------------------------------

TEST_F(JobRequests, APauseIsAnnouncedHeldAndEnded) {
  EXPECT_FALSE(port().close_step(0).pause);
  const v1::Job asked = client_.pause("lunch");
  EXPECT_EQ(asked.state(), v1::Job::RUNNING) << "until the ranks are held";
  EXPECT_THAT(asked.state_reason(), HasSubstr("pause asked by uid:"));
  EXPECT_THAT(asked.state_reason(), HasSubstr("lunch"));
  EXPECT_TRUE(port().close_step(1).pause);

  EXPECT_TRUE(port().held().pause);
  EXPECT_EQ(client_.job().state(), v1::Job::PAUSED);
  EXPECT_TRUE(port().held().pause) << "asked again and again";
  EXPECT_THAT(notices_, ElementsAre(HasSubstr("paused before step 2: pause asked by uid:")));
  EXPECT_EQ(client_.health("fusedbun.control.v1.TrainingControl"), ControlClient::Health::serving);

  const v1::Job resumed = client_.resume();
  EXPECT_EQ(resumed.state(), v1::Job::RUNNING);
  EXPECT_EQ(resumed.state_reason(), "");
  EXPECT_FALSE(port().held().pause);
  port().hold_ended(LeaveRequest::none);
  EXPECT_THAT(notices_.back(), HasSubstr("resumed"));
  EXPECT_FALSE(port().close_step(2).pause);
}

TEST_F(JobRequests, ARequestThatIsRepeatedDoesNotPauseAgainWhatSomebodyHasResumed) {
  v1::PauseJobRequest pause;
  pause.set_request_id("once");
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::PauseJob, pause), "OK");
  client_.resume();
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::PauseJob, pause), "OK");
  EXPECT_FALSE(port().close_step(0).pause);
  v1::StopJobRequest stop;
  stop.set_request_id("once");
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::StopJob, stop), "REQUEST_ID_REUSED");
  pause.set_request_id("twice");
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::PauseJob, pause), "OK");
  EXPECT_TRUE(port().close_step(1).pause);
}

TEST_F(JobRequests, ResumedBeforeTheRanksAreHeldNothingHappens) {
  client_.pause("");
  client_.resume();
  EXPECT_FALSE(port().held().pause);
  port().hold_ended(LeaveRequest::none);
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
  EXPECT_THAT(notices_, ElementsAre());
}

TEST_F(JobRequests, APausedJobTakesChangesAndRequestsToLeaveButSavesNoCheckpoint) {
  server_.offer_checkpoints({});
  client_.pause("");
  port().close_step(0);
  port().held();
  v1::CreateChangeRequest change;
  change.set_etag("*");
  change.mutable_change()->add_patches()->set_group("*");
  change.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1e-6);
  EXPECT_EQ(client_.create_change(change).revision(), 1);
  EXPECT_THROW(client_.create_checkpoint({}), UnavailableError);
  EXPECT_EQ(client_.drain("enough").state(), v1::Job::DRAINING);
  EXPECT_EQ(port().held().leave, LeaveRequest::drain);
}

TEST_F(JobRequests, ASignalEndsAPause) {
  client_.pause("");
  port().close_step(0);
  port().held();
  port().hold_ended(LeaveRequest::drain);
  EXPECT_EQ(client_.job().state(), v1::Job::DRAINING);
}

TEST_F(JobRequests, TimeInAPauseIsNoStall) {
  port().step_finished({.job_step = 0});
  port().step_finished({.job_step = 1});
  client_.pause("");
  port().held();
  std::this_thread::sleep_for(std::chrono::milliseconds(600));  // the stall limit is 200 ms
  EXPECT_EQ(client_.health("fusedbun.progress"), ControlClient::Health::serving);
  client_.resume();
  port().hold_ended(LeaveRequest::none);
  EXPECT_EQ(client_.health("fusedbun.progress"), ControlClient::Health::serving);
  EXPECT_TRUE(soon([&] {
    return client_.health("fusedbun.progress") == ControlClient::Health::not_serving;
  })) << "no step ends any more";
}

// ---- by force ------------------------------------------------------------------------------------

TEST_F(JobRequests, StopWithForceEndsTheProcessesAfterTheAnswer) {
  server_.set_orders(&ranks_);
  EXPECT_EQ(client_.stop("it hangs", /*force=*/true).state(), v1::Job::DRAINING);
  ASSERT_TRUE(soon([&] { return !ranks_.exits().empty(); }));
  EXPECT_EQ(ranks_.exits().front().first, 0);
  EXPECT_THAT(ranks_.exits().front().second, HasSubstr("it hangs; by force"));
  EXPECT_EQ(client_.job().state(), v1::Job::STOPPED);
}

TEST_F(JobRequests, StopWithForceComesAfterOneThatWasNotHeard) {
  server_.set_orders(&ranks_);
  client_.stop("");
  client_.stop("", /*force=*/true);
  EXPECT_TRUE(soon([&] { return !ranks_.exits().empty(); }));
}

TEST_F(JobRequests, DrainWithADeadlineEndsTheProcessesThatHaveNotLeftByThen) {
  server_.set_orders(&ranks_);
  const auto begin = std::chrono::steady_clock::now();
  client_.drain("spot", 1.0);
  ASSERT_TRUE(soon([&] { return !ranks_.exits().empty(); }));
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  EXPECT_EQ(ranks_.exits().front().first, 75);
  EXPECT_EQ(client_.job().state(), v1::Job::STOPPED);
}

// A launcher that starts jobs again after 75 must not do so with one that a person has stopped.
TEST_F(JobRequests, AStopAfterADrainWithADeadlineIsForGood) {
  server_.set_orders(&ranks_);
  client_.drain("spot", 0.5);
  client_.stop("good enough");
  ASSERT_TRUE(soon([&] { return !ranks_.exits().empty(); }));
  EXPECT_EQ(ranks_.exits().front().first, 0);
}

TEST_F(JobRequests, AStopWithForceWinsOverADeadlineThatComesFirst) {
  server_.set_orders(&ranks_);
  client_.drain("spot", 0.28);  // a little before the force
  client_.stop("", /*force=*/true);
  ASSERT_TRUE(soon([&] { return !ranks_.exits().empty(); }));
  EXPECT_EQ(ranks_.exits().front().first, 0);
}

TEST_F(JobRequests, AskedTwiceTheFirstReasonStays) {
  client_.pause("lunch");
  EXPECT_THAT(client_.pause("dinner").state_reason(), HasSubstr("lunch"));
  client_.resume();
  EXPECT_EQ(client_.resume().state(), v1::Job::RUNNING);
}

TEST_F(JobRequests, WhoHasLeftByItsDeadlineIsNotEnded) {
  server_.set_orders(&ranks_);
  client_.drain("spot", 0.3);
  server_.set_state(JobState::drained, "drained");
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_TRUE(ranks_.exits().empty());
}

TEST_F(JobRequests, WithoutHeartbeatsForceReachesNobody) {
  v1::StopJobRequest stop;
  stop.set_force(true);
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::StopJob, stop), "NO_HEARTBEATS");
  v1::DrainJobRequest drain;
  drain.mutable_deadline()->set_seconds(1);
  EXPECT_EQ(refusal(&v1::TrainingControl::Stub::DrainJob, drain), "NO_HEARTBEATS");
  EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
}

TEST_F(JobRequests, ADeadlineThatIsNoneIsRefused) {
  server_.set_orders(&ranks_);
  for (const int64_t seconds : {int64_t{-1}, int64_t{8 * 86'400}, INT64_MAX}) {
    v1::DrainJobRequest drain;
    drain.mutable_deadline()->set_seconds(seconds);
    EXPECT_EQ(refusal(&v1::TrainingControl::Stub::DrainJob, drain), "BAD_DEADLINE") << seconds;
  }
}

// ---- what the ranks are doing --------------------------------------------------------------------

TEST_F(JobRequests, ADumpNamesTheFilesAndTheRanksThatDidNotWrite) {
  server_.set_orders(&ranks_);
  const v1::Diagnostics diagnostics = client_.dump();
  EXPECT_THAT(ranks_.folders(), ElementsAre(diagnostics.directory()));
  EXPECT_THAT(diagnostics.directory(),
              testing::StartsWith((folder_.path() / "diagnostics").string() + "/20"));
  EXPECT_THAT(diagnostics.files(), ElementsAre("rank-0.txt"));
  EXPECT_THAT(diagnostics.missing_ranks(), ElementsAre(1, 2));
  EXPECT_NE(client_.dump().directory(), diagnostics.directory()) << "each time a folder";
}

}  // namespace
}  // namespace fusedbun::control
