// Clients that race for the same etag while steps go by: no update is lost, none is made twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <iostream>
#include <mutex>
#include <thread>
#include <vector>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

constexpr int kClients = 8;
constexpr int kAdditionsPerClient = 20;

/// Adds 1 to the weight decay of group 0, whatever it takes. Returns how often somebody else was faster.
int add_one(ControlClient& client) {
  for (int conflicts = 0;; ++conflicts) {
    const v1::Hyperparameters now = client.hyperparameters();
    v1::CreateChangeRequest request;
    request.set_etag(now.etag());
    v1::GroupPatch& patch = *request.mutable_change()->add_patches();
    patch.set_group("body");
    patch.mutable_values()->set_weight_decay(now.groups(0).values().weight_decay() + 1);
    try {
      client.create_change(request);
      return conflicts;
    } catch (const EtagConflict&) {
    }
  }
}

TEST(ControlRace, NoUpdateIsLost) {
  const TemporaryFolder folder;
  JobDescription job = two_group_job();
  job.groups[0].options.Lambda = 0;
  ControlServer server(options_in(folder.path()), job);
  server.set_state(JobState::running);
  std::atomic<int> conflicts = 0;
  {
    std::vector<std::jthread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&] {
        ControlClient client({.run_dir = folder.path()});
        for (int n = 0; n < kAdditionsPerClient; ++n) conflicts += add_one(client);
      });
    }
  }
  ControlClient client({.run_dir = folder.path()});
  const v1::Hyperparameters all = client.hyperparameters();
  EXPECT_EQ(all.groups(0).values().weight_decay(), kClients * kAdditionsPerClient);
  EXPECT_EQ(all.revision(), kClients * kAdditionsPerClient);
  std::cout << conflicts << " conflicts\n";
}

TEST(ControlRace, ChangesDuringStepsAreUsedInOrderAtTheirSteps) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  FakeLoop loop(server.port(), std::chrono::microseconds(200));
  std::vector<v1::Change> changes;
  {
    std::vector<std::jthread> clients;
    std::mutex mutex;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&, i] {
        ControlClient client({.run_dir = folder.path()});
        for (int n = 0; n < kAdditionsPerClient; ++n) {
          v1::CreateChangeRequest request;
          request.set_etag("*");
          request.mutable_change()->add_patches()->set_group("*");
          request.mutable_change()->mutable_patches(0)->mutable_values()->set_learning_rate(
              i * 1000 + n);
          const v1::Change change = client.create_change(request);
          const std::lock_guard lock(mutex);
          changes.push_back(change);
        }
      });
    }
  }
  std::ranges::sort(changes, {}, &v1::Change::revision);
  ASSERT_TRUE(loop.wait_for_step(changes.back().effective_step()));
  const std::vector<double> used = loop.learning_rates();
  double expected = 1e-3;
  size_t next = 0;
  for (int64_t step = 0; step < static_cast<int64_t>(used.size()); ++step) {
    for (; next < changes.size() && changes[next].effective_step() <= step; ++next) {
      EXPECT_EQ(changes[next].revision(), static_cast<int64_t>(next + 1));
      expected = changes[next].patches(0).values().learning_rate();
    }
    ASSERT_EQ(used[step], expected) << "step " << step;
  }
  EXPECT_EQ(next, changes.size());
}

}  // namespace
}  // namespace fusedbun::control
