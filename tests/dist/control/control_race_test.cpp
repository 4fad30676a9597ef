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

constexpr int kClients = 16;
constexpr int kTriesPerClient = 500;
constexpr int kChangesPerClient = 20;

TEST(ControlRace, NoUpdateIsLost) {
  const TemporaryFolder folder;
  JobDescription job = two_group_job();
  job.groups[0].options.Lambda = 0;
  ControlServer server(options_in(folder.path()), job);
  server.set_state(JobState::running);
  std::mutex mutex;
  std::vector<v1::Change> accepted;
  std::atomic<int> aborted = 0;
  {
    std::atomic<bool> done = false;
    std::jthread steps([&] {
      changes::ActiveChanges active(2);
      std::vector<Options> options = {job.groups[0].options, job.groups[1].options};
      for (int64_t step = 0; !done; ++step) {
        std::this_thread::sleep_for(std::chrono::microseconds(500));
        const auto boundary = server.port().close_step(step);
        std::vector<Options*> pointers = {&options[0], &options[1]};
        active.enter_step(step, pointers);
        server.port().step_finished({.job_step = step, .group_options = options});
        active.accept(server.port().entries(active.known_revision(), boundary.newest_revision));
      }
    });
    std::vector<std::jthread> clients;
    for (int i = 0; i < kClients; ++i) {
      clients.emplace_back([&] {
        ControlClient client({.run_dir = folder.path()});
        for (int n = 0; n < kTriesPerClient; ++n) {
          const v1::Hyperparameters now = client.hyperparameters();
          v1::CreateChangeRequest request;
          request.set_etag(now.etag());
          v1::GroupPatch& patch = *request.mutable_change()->add_patches();
          patch.set_group("body");
          patch.mutable_values()->set_weight_decay(now.groups(0).values().weight_decay() + 1);
          try {
            v1::Change change = client.create_change(request);
            const std::lock_guard lock(mutex);
            accepted.push_back(std::move(change));
          } catch (const EtagConflict&) {
            ++aborted;
          }
        }
      });
    }
    clients.clear();
    done = true;
  }
  // One after the other: each accepted change saw the one before it, and none came in between.
  std::ranges::sort(accepted, {}, &v1::Change::revision);
  for (size_t i = 0; i < accepted.size(); ++i) {
    ASSERT_EQ(accepted[i].revision(), static_cast<int64_t>(i + 1));
    ASSERT_EQ(accepted[i].previous().groups(0).values().weight_decay(), static_cast<double>(i));
    ASSERT_EQ(accepted[i].resulting().groups(0).values().weight_decay(),
              static_cast<double>(i + 1));
  }
  ControlClient client({.run_dir = folder.path()});
  EXPECT_EQ(client.hyperparameters().groups(0).values().weight_decay(),
            static_cast<double>(accepted.size()));
  EXPECT_EQ(static_cast<int>(accepted.size()) + aborted, kClients * kTriesPerClient);
  std::cout << accepted.size() << " accepted, " << aborted << " conflicts\n";
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
        for (int n = 0; n < kChangesPerClient; ++n) {
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
