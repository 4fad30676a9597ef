// grpc.health.v1 and reflection, as any tool sees them.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/health_reporter.h"
#include "fusedbun/tests/dist/control/fake_loop.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace fusedbun::control {
namespace {

using grpc::health::v1::HealthCheckResponse;
using std::chrono::milliseconds;

/// The stream of one name's answers.
class Watch {
 public:
  Watch(const std::string& address, const std::string& name)
      : stub_(grpc::health::v1::Health::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    reader_ = stub_->Watch(&context_, request);
  }
  ~Watch() {
    context_.TryCancel();
    reader_->Finish().IgnoreError();
  }
  Watch(const Watch&) = delete;  // owns a stream

  /// UNKNOWN when the stream has ended.
  HealthCheckResponse::ServingStatus next() {
    HealthCheckResponse reply;
    return reader_->Read(&reply) ? reply.status() : HealthCheckResponse::UNKNOWN;
  }

 private:
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<HealthCheckResponse>> reader_;
};

TEST(Health, AJobThatASignalDrainsSaysSoBeforeItLeaves) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  ControlClient client({.run_dir = folder.path()});
  changes::StepReport report{.job_step = 7};
  server.port().step_finished(report);
  EXPECT_EQ(client.health(kControlHealthName), ControlClient::Health::serving);
  report.job_step = 8;
  report.leave = changes::LeaveRequest::drain;
  server.port().step_finished(report);
  EXPECT_EQ(client.health(kControlHealthName), ControlClient::Health::not_serving);
  EXPECT_EQ(client.job().state(), v1::Job::DRAINING);
}

TEST(Health, ThreeNamesAndNoOther) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  ControlClient client({.run_dir = folder.path()});
  EXPECT_EQ(client.health(""), ControlClient::Health::serving);
  EXPECT_EQ(client.health(kControlHealthName), ControlClient::Health::not_serving) << "starting";
  EXPECT_EQ(client.health(kProgressHealthName), ControlClient::Health::not_serving);
  EXPECT_EQ(client.health("fusedbun.luck"), ControlClient::Health::unknown_name);
  server.set_state(JobState::running);
  EXPECT_EQ(client.health(kControlHealthName), ControlClient::Health::serving) << "at once";
}

TEST(Health, ProgressTurnsWithTheStepsOfTheLoop) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  Watch progress(server.address(), kProgressHealthName);
  EXPECT_EQ(progress.next(), HealthCheckResponse::NOT_SERVING) << "no step has ended yet";
  FakeLoop loop(server.port());
  EXPECT_EQ(progress.next(), HealthCheckResponse::SERVING);
  const auto held = std::chrono::steady_clock::now();
  loop.hold();
  EXPECT_EQ(progress.next(), HealthCheckResponse::NOT_SERVING);
  const auto waited = std::chrono::steady_clock::now() - held;
  EXPECT_GE(waited, milliseconds(100)) << "the stall time-out is 200 ms";
  EXPECT_LE(waited, milliseconds(200 + 1000));
  loop.go_on();
  EXPECT_EQ(progress.next(), HealthCheckResponse::SERVING);
}

TEST(Health, ADrainIsSeenBeforeTheLoopLeaves) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  Watch control(server.address(), kControlHealthName);
  EXPECT_EQ(control.next(), HealthCheckResponse::SERVING);
  ControlClient client({.run_dir = folder.path()});
  client.drain("");
  EXPECT_EQ(control.next(), HealthCheckResponse::NOT_SERVING);
}

TEST(Health, AllTurnsWhenTheServerGoes) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  Watch process(server.address(), "");
  EXPECT_EQ(process.next(), HealthCheckResponse::SERVING);
  std::jthread shutdown([&] { server.shutdown(); });
  EXPECT_EQ(process.next(), HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(process.next(), HealthCheckResponse::UNKNOWN) << "then the stream ends";
}

TEST(Health, AWatchOfAnUnknownNameIsKept) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  Watch unknown(server.address(), "fusedbun.luck");
  EXPECT_EQ(unknown.next(), HealthCheckResponse::SERVICE_UNKNOWN);
}

}  // namespace
}  // namespace fusedbun::control
