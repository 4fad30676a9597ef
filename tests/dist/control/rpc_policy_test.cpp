// The table of who may call what in which state, and that the server obeys it.
#include "fusedbun/dist/control/rpc_policy.h"

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "fusedbun/dist/control/callers.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/rate_limit.h"
#include "fusedbun/tests/dist/control/every_rpc.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

TEST(RpcPolicy, TheTableHasEveryRpcOfTheContractInOrder) {
  const auto* service = v1::Job::descriptor()->file()->service(0);
  ASSERT_EQ(rpc_policies().size(), static_cast<size_t>(service->method_count()));
  std::set<std::string_view> names;
  for (const RpcPolicy& policy : rpc_policies()) {
    EXPECT_EQ(&policy_of(policy.rpc), &policy);
    EXPECT_NE(service->FindMethodByName(std::string(policy.name)), nullptr) << policy.name;
    names.insert(policy.name);
    EXPECT_FALSE(refused_for(policy.rpc, Role::admin));
    EXPECT_TRUE(refused_for(policy.rpc, Role::none));
  }
  EXPECT_EQ(names.size(), rpc_policies().size());
}

/// Everything about the job that a refused call must not change.
std::string state_of(ControlClient& client) {
  return client.hyperparameters().etag() + v1::Job::State_Name(client.job().state());
}

TEST(RpcPolicy, InEveryStateEveryRpcAnswersAsTheTableSays) {
  for (int state = 0; state <= static_cast<int>(JobState::stopped); ++state) {
    for (const RpcPolicy& policy : rpc_policies()) {
      const auto job_state = static_cast<JobState>(state);
      SCOPED_TRACE(std::string(policy.name) + " in state " + std::to_string(state));
      const TemporaryFolder folder;
      {
        ControlServer before(options_in(folder.path()), two_group_job());
        before.set_state(JobState::running);
        ASSERT_TRUE(call(*v1::TrainingControl::NewStub(grpc::CreateChannel(
                             before.address(), grpc::InsecureChannelCredentials())),
                         Rpc::create_change)
                        .ok());
      }
      ControlServer server(options_in(folder.path()), two_group_job());  // has change 1 from before
      server.set_state(job_state);
      ControlClient client({.run_dir = folder.path()});
      const std::string before = state_of(client);
      const auto stub = v1::TrainingControl::NewStub(
          grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
      const grpc::Status status = call(*stub, policy.rpc);
      const auto expected = refused_in(policy.rpc, job_state);
      EXPECT_EQ(status.error_code(),
                expected ? to_status(*expected).error_code() : grpc::StatusCode::OK)
          << status.error_message();
      if (expected) {
        EXPECT_EQ(reason_of(status).reason, expected->reason);
        EXPECT_EQ(state_of(client), before);
      }
    }
  }
}

TEST(Callers, RolesAreReadLineByLine) {
  const auto roles = parse_roles("# comment\n\n viewer a # why\nadmin\tb\n", "roles");
  EXPECT_EQ(roles.at("a"), Role::viewer);
  EXPECT_EQ(roles.at("b"), Role::admin);
  EXPECT_EQ(roles.size(), 2U);
  for (const char* wrong : {"viewer", "root a", "viewer a b", "none a", "viewer a\nadmin a"}) {
    EXPECT_THROW(parse_roles(wrong, "roles"), ConfigError) << wrong;
  }
}

TEST(RateLimit, GivesASecondsWorthAtOnceAndThenWhatTimeGivesBack) {
  RateLimit limit(50);
  int64_t now = 0;
  const auto taken = [&](const std::string& actor) {
    int count = 0;
    while (count < 1000 && limit.allows(actor, now)) ++count;
    return count;
  };
  EXPECT_EQ(taken("a"), 50);
  EXPECT_EQ(taken("b"), 50) << "each has its own";
  now += 100'000;
  EXPECT_EQ(taken("a"), 5);
  now += 60'000'000;
  EXPECT_EQ(taken("a"), 50);
  RateLimit none(0);
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(none.allows("a", 0));
  RateLimit slow(0.5);
  EXPECT_TRUE(slow.allows("a", 0));
  EXPECT_FALSE(slow.allows("a", 1'000'000));
  EXPECT_TRUE(slow.allows("a", 2'000'001));
}

TEST(RateLimit, IsObeyedByTheServer) {
  const TemporaryFolder folder;
  ControlOptions options = options_in(folder.path());
  options.changes_per_second = 3;
  ControlServer server(options, two_group_job());
  server.set_state(JobState::running);
  const auto stub = v1::TrainingControl::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  grpc::Status status;
  for (int i = 0; i < 20 && status.ok(); ++i) status = call(*stub, Rpc::create_change);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(reason_of(status).reason, "RATE_LIMITED");
  EXPECT_TRUE(call(*stub, Rpc::get_job).ok());
}

}  // namespace
}  // namespace fusedbun::control
