// The table of who may call what in which state, and that the server obeys it.
#include "fusedbun/dist/control/rpc_policy.h"

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include "fusedbun/dist/control/authenticator.h"
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
  ASSERT_EQ(expected_policies().size(), rpc_policies().size());
  std::set<std::string_view> names;
  for (size_t i = 0; i < rpc_policies().size(); ++i) {
    const RpcPolicy& policy = rpc_policies()[i];
    const ExpectedPolicy& expected = expected_policies()[i];
    EXPECT_EQ(policy.rpc, expected.rpc);
    EXPECT_EQ(policy.name, expected.call);
    EXPECT_NE(service->FindMethodByName(policy.name), nullptr) << policy.name;
    names.insert(policy.name);
  }
  EXPECT_EQ(names.size(), rpc_policies().size());
}

TEST(RpcPolicy, ARoleMayDoWhatIsWrittenHereAndNoMore) {
  for (const ExpectedPolicy& expected : expected_policies()) {
    for (const Role role : {Role::none, Role::viewer, Role::operator_, Role::admin}) {
      const auto refusal = refused_for(expected.rpc, role);
      EXPECT_EQ(refusal ? refusal->reason : "", role >= expected.least ? "" : "ROLE_TOO_LOW")
          << name_of(role) << " calls " << expected.call;
    }
  }
}

/// Everything about the job that a refused call must not change.
std::string state_of(ControlClient& client) {
  return client.hyperparameters().etag() + v1::Job::State_Name(client.job().state());
}

TEST(RpcPolicy, InEveryStateEveryRpcAnswersAsTheTableSays) {
  for (int state = 0; state <= static_cast<int>(JobState::stopped); ++state) {
    for (const ExpectedPolicy& policy : expected_policies()) {
      const auto job_state = static_cast<JobState>(state);
      SCOPED_TRACE(std::string(policy.call) + " in state " + std::to_string(state));
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
      server.offer_checkpoints({found_checkpoint()});
      server.set_state(job_state);
      ControlClient client({.run_dir = folder.path()});
      const std::string before = state_of(client);
      const auto stub = v1::TrainingControl::NewStub(
          grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
      const grpc::Status status = call(*stub, policy.rpc);
      const std::string expected = policy.reasons[is_final(job_state) ? 4 : state];
      EXPECT_EQ(status.error_code(), code_of_reason(expected)) << status.error_message();
      EXPECT_EQ(reason_of(status).reason, expected);
      if (!expected.empty()) {
        EXPECT_EQ(state_of(client), before);
      }
    }
  }
}

TEST(Authenticator, RolesAreReadLineByLine) {
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

TEST(RateLimit, CountsNeitherDryRunsNorWhatWasTakenBefore) {
  const TemporaryFolder folder;
  ControlOptions options = options_in(folder.path());
  options.changes_per_second = 1e-6;  // one, and no other in the time of this test
  ControlServer server(options, two_group_job());
  server.set_state(JobState::running);
  const auto stub = v1::TrainingControl::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  v1::CreateChangeRequest request;
  request.set_parent("jobs/-");
  request.set_etag("*");
  request.set_request_id("one");
  v1::GroupPatch& patch = *request.mutable_change()->add_patches();
  patch.set_group("*");
  patch.mutable_values()->set_eps(1e-6);
  const auto send = [&] {
    grpc::ClientContext context;
    v1::Change change;
    const grpc::Status status = stub->CreateChange(&context, request, &change);
    return status.ok() ? std::to_string(change.revision()) : reason_of(status).reason;
  };
  request.set_validate_only(true);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(send(), "0");
  request.set_validate_only(false);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(send(), "1") << "the first answer, again";
  request.set_request_id("two");
  EXPECT_EQ(send(), "RATE_LIMITED");
}

}  // namespace
}  // namespace fusedbun::control
