// Requests that are sent again, and dry runs: what is promised must be what happens.
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/tests/dist/control/fake_loop.h"
#include "fusedbun/tests/dist/plan/random_model.h"

namespace fusedbun::control {
namespace {

using plan::Random;
using plan::test_seed;

std::unique_ptr<v1::TrainingControl::Stub> stub_of(const ControlServer& server) {
  return v1::TrainingControl::NewStub(
      grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
}

struct Answer {
  grpc::Status status;
  v1::Change change;

  /// What a program sees of it.
  std::string text() const {
    return std::to_string(status.error_code()) + reason_of(status).reason + status.error_message();
  }
};

Answer send(v1::TrainingControl::Stub& stub, const v1::CreateChangeRequest& request,
            std::chrono::microseconds deadline = std::chrono::seconds(10)) {
  Answer answer;
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + deadline);
  answer.status = stub.CreateChange(&context, request, &answer.change);
  return answer;
}

TEST(RepeatedRequests, HaveOneEffectAndOneAnswerAlsoAcrossARestart) {
  constexpr int kRequests = 1000;
  Random random(test_seed());
  const TemporaryFolder folder;
  std::vector<v1::CreateChangeRequest> requests(kRequests);
  std::vector<std::string> answers(kRequests);
  for (int i = 0; i < kRequests; ++i) {
    v1::CreateChangeRequest& request = requests[i];
    request.set_parent("jobs/-");
    request.set_etag("*");
    request.set_request_id("request " + std::to_string(i));
    request.mutable_change()->add_patches()->set_group("*");
    request.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1e-6 * (i + 1));
  }
  for (const bool restarted : {false, true}) {
    ControlServer server(options_in(folder.path()), two_group_job());
    server.set_state(JobState::running);
    FakeRank rank(server.port());
    const auto stub = stub_of(server);
    for (int i = 0; i < kRequests; ++i) {
      if (i % 100 == 0) {
        for (int steps = 0; steps < 4; ++steps) rank.step();
      }
      if (restarted ? random() % 2 == 0 : i >= kRequests / 2 && i % 2 == 0) continue;
      const auto times = 1 + random() % 5;
      for (uint64_t time = 0; time < times; ++time) {
        // Cut off after it was sent, at any moment of its way: its effect is unknown, so it is sent again.
        if (random() % 10 < 3) send(*stub, requests[i], std::chrono::microseconds(random() % 1500));
      }
      const Answer answer = send(*stub, requests[i]);
      ASSERT_TRUE(answer.status.ok()) << answer.text();
      const std::string text = answer.change.SerializeAsString();
      if (answers[i].empty()) answers[i] = text;
      ASSERT_EQ(text, answers[i]) << "request " << i;
    }
  }
  ControlServer server(options_in(folder.path()), two_group_job());
  ControlClient client({.run_dir = folder.path()});
  std::map<std::string, int> effects;
  std::vector<changes::ChangeEntry> entries =
      server.port().entries(0, server.port().newest_revision());
  // Changes of the second attempt cancel those of the first that would overwrite them.
  std::erase_if(entries, [](const auto& entry) { return entry.field == changes::Field::cancel; });
  for (const changes::ChangeEntry& entry : entries) ++effects[std::to_string(entry.value)];
  for (const auto& [value, count] : effects) EXPECT_EQ(count, 1) << value;
  const auto answered =
      std::ranges::count_if(answers, [](const std::string& text) { return !text.empty(); });
  EXPECT_GE(static_cast<std::ptrdiff_t>(entries.size()), answered);
  EXPECT_LE(entries.size(), static_cast<size_t>(kRequests));
}

/// Half of them cannot be right.
v1::CreateChangeRequest random_request(Random& random, const std::string& etag,
                                       int64_t current_step) {
  v1::CreateChangeRequest request;
  request.set_parent(random() % 20 == 0 ? "jobs/other" : "jobs/-");
  request.set_etag(random() % 8 == 0 ? "\"1-0000000000000000\"" : random() % 2 == 0 ? "*" : etag);
  if (random() % 30 == 0) request.clear_etag();
  v1::Change& change = *request.mutable_change();
  if (random() % 4 == 0)
    change.set_apply_at_step(current_step + static_cast<int64_t>(random() % 8) - 1);
  if (random() % 30 == 0) change.set_reason(std::string(300, 'x'));
  const uint64_t patches = random() % 30 == 0 ? 0 : 1 + random() % 2;
  for (uint64_t i = 0; i < patches; ++i) {
    constexpr const char* kGroups[] = {"*", "body", "head", "body", "*", "nobody"};
    v1::GroupPatch& patch = *change.add_patches();
    patch.set_group(kGroups[random() % std::size(kGroups)]);
    v1::HyperparameterValues& values = *patch.mutable_values();
    const double number = std::ldexp(static_cast<double>(random() % 1000) - 30, -10);
    switch (random() % 6) {
      case 0:
        values.set_learning_rate(number);
        break;
      case 1:
        values.set_weight_decay(random() % 10 == 0 ? std::nan("") : number);
        break;
      case 2:
        values.set_lr_scale(number);
        break;
      case 3:
        values.set_momentum_beta(number);
        break;
      case 4:
        values.set_beta_decay(2 * number);
        break;
      default:
        values.set_use_rms(random() % 2 == 0);
    }
  }
  return request;
}

TEST(DryRuns, SayWhatALiveCallWouldAndChangeNothing) {
  constexpr int kRequests = 10'000;
  Random random(test_seed());
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  FakeRank rank(server.port());
  ControlClient client({.run_dir = folder.path()});
  const auto stub = stub_of(server);
  int accepted = 0;
  std::string etag = client.hyperparameters().etag();
  for (int i = 0; i < kRequests; ++i) {
    if (i % 8 == 0) rank.step();
    v1::CreateChangeRequest request = random_request(random, etag, rank.next_step());
    request.set_validate_only(true);
    const Answer dry = send(*stub, request);
    request.set_validate_only(false);
    const Answer live = send(*stub, request);
    ASSERT_EQ(dry.text(), live.text()) << request.ShortDebugString();
    if (!live.status.ok()) continue;
    ++accepted;
    ASSERT_EQ(live.change.revision(), accepted) << "a dry run or a refused call took a revision";
    ASSERT_EQ(dry.change.state(), v1::Change::STATE_UNSPECIFIED);
    ASSERT_EQ(dry.change.effective_step(), live.change.effective_step());
    v1::Hyperparameters resulting = live.change.resulting();
    resulting.clear_revision();
    ASSERT_EQ(dry.change.resulting().SerializeAsString(), resulting.SerializeAsString());
    etag = client.hyperparameters().etag();
  }
  std::cout << accepted << " of " << kRequests << " accepted\n";
  EXPECT_GT(accepted, kRequests / 10);
  EXPECT_LT(accepted, kRequests * 9 / 10);
}

}  // namespace
}  // namespace fusedbun::control
