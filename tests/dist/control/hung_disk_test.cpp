// The service while the disk of changes.log does not answer: changes are told so in time, and all other calls are served.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/changes/disk_faults.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using changes::DiskFaults;
using std::chrono::seconds;

class HungDisk : public testing::Test {
 protected:
  HungDisk()
      : server_(options_in(folder_.path()), two_group_job()), client_({.run_dir = folder_.path()}) {
    server_.set_state(JobState::running);
    client_.create_change(request_of(0.5));
    DiskFaults::instance().hangs = true;
  }
  ~HungDisk() override { DiskFaults::instance().reset(); }

  static v1::CreateChangeRequest request_of(double learning_rate) {
    v1::CreateChangeRequest request;
    request.set_parent("jobs/-");
    request.set_etag("*");
    v1::GroupPatch& patch = *request.mutable_change()->add_patches();
    patch.set_group("*");
    patch.mutable_values()->set_learning_rate(learning_rate);
    return request;
  }
  /// The reason of the refusal; "OK" if there is none.
  std::string send(double learning_rate, std::chrono::milliseconds deadline) {
    const auto stub = v1::TrainingControl::NewStub(
        grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + deadline);
    v1::Change change;
    const grpc::Status status = stub->CreateChange(&context, request_of(learning_rate), &change);
    return status.ok() ? "OK" : reason_of(status).reason;
  }

  TemporaryFolder folder_;
  ControlServer server_;
  ControlClient client_;
};

TEST_F(HungDisk, HoldsUpNeitherStepsNorOtherCalls) {
  std::atomic<int> slow = 0;
  std::atomic<int> ended = 0;
  std::vector<std::thread> clients;
  constexpr int kClients = 64;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&] {
      if (send(0.25, seconds(20)) == "LOG_SLOW") ++slow;
      ++ended;
    });
  }
  FakeLoop loop(server_.port());
  const int64_t step = client_.job().step();
  EXPECT_TRUE(loop.wait_for_step(step + 20)) << "training goes on";
  // More change calls than may wait, and these are answered as long as they last.
  while (ended < kClients) {
    EXPECT_EQ(client_.job().state(), v1::Job::RUNNING);
    EXPECT_EQ(client_.changes().changes_size(), 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(slow, kClients) << "each is told, and before its own deadline";
  EXPECT_EQ(client_.drain("the disk is broken").state(), v1::Job::DRAINING);
}

TEST_F(HungDisk, ACallWithoutADeadlineDoesNotOutliveTheDisk) {
  std::atomic<bool> answered = false;
  std::thread client([&] {
    const auto stub = v1::TrainingControl::NewStub(
        grpc::CreateChannel(server_.address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::Change change;
    EXPECT_TRUE(stub->CreateChange(&context, request_of(0.25), &change).ok());
    answered = true;
  });
  while (DiskFaults::instance().hanging == 0) std::this_thread::yield();
  EXPECT_FALSE(answered);
  DiskFaults::instance().hangs = false;
  client.join();
  EXPECT_EQ(client_.changes().changes_size(), 2);
}

TEST_F(HungDisk, TheEndOfTheRunWaitsForItOnlySoLong) {
  std::thread client([&] { send(0.25, seconds(2)); });
  while (DiskFaults::instance().hanging == 0) std::this_thread::yield();
  client.join();
  server_.set_state(JobState::failed, "the disk");  // returns
  EXPECT_EQ(client_.job().state(), v1::Job::FAILED);
  server_.shutdown();
}

}  // namespace
}  // namespace fusedbun::control
