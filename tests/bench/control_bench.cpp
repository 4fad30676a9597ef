// What the control plane costs a training step on rank 0: the calls at a step's end, with a live server and with none, in turns.
//
//   control_bench [STEPS]
//
// Four jobs: nobody looks; somebody reads metrics and polls 100 times a second; 1,000 changes wait for their step; sixteen read
// metrics, four of whom stop after the first sample.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kStepUs = 20'000;  ///< a short step, which the cost is compared with
constexpr int kRounds = 21;

/// A job without a control plane.
class Nobody final : public changes::ControlPort {
 public:
  int64_t newest_revision() override { return 0; }
  Boundary close_step(int64_t) override { return {}; }
  std::vector<changes::ChangeEntry> entries(int64_t, int64_t) override { return {}; }
  void step_finished(const changes::StepReport&) override {}
};

double us_per_step(FakeRank& rank, int steps) {
  const auto start = Clock::now();
  for (int step = 0; step < steps; ++step) rank.step();
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count() / steps;
}

/// Median, over rounds in turns, of what a step takes longer with `port`.
void measure(const char* what, changes::ControlPort& port, int steps) {
  Nobody nobody;
  FakeRank with(port), without(nobody);
  std::vector<double> differences;
  for (int round = 0; round < kRounds; ++round)
    differences.push_back(us_per_step(with, steps) - us_per_step(without, steps));
  std::ranges::sort(differences);
  const double median = differences[kRounds / 2];
  std::printf("%-44s %7.2f us (%.2f to %.2f), %.4f %% of a step of 20 ms\n", what, median,
              differences.front(), differences.back(), 100 * median / kStepUs);
}

/// Measures, then calls its argument and ends the server.
using Measure = std::function<void(const std::function<void()>& before_shutdown)>;

/// A job with a live server, and whatever `around` does with it meanwhile.
template <class Around>
void measure_job(const char* what, int steps, Around around) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  around(folder.path(), [&](const std::function<void()>& before_shutdown) {
    measure(what, server.port(), steps);
    before_shutdown();
    server.shutdown();
  });
}

void nobody_looks(const std::filesystem::path&, const Measure& measure) {
  measure([] {});
}

void many_look(const std::filesystem::path& run_dir, const Measure& measure) {
  std::atomic<bool> done = false;
  std::jthread metrics([&] {
    ControlClient({.run_dir = run_dir}).stream_metrics({}, [](const auto&) { return true; });
  });
  std::jthread polls([&] {
    for (ControlClient client({.run_dir = run_dir}); !done;) {
      client.job();
      client.hyperparameters();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  // The end of the server ends the stream; polling ends before.
  measure([&] {
    done = true;
    polls.join();
  });
}

void changes_wait(const std::filesystem::path& run_dir, const Measure& measure) {
  ControlClient client({.run_dir = run_dir});
  for (int i = 0; i < 1000; ++i) {
    v1::CreateChangeRequest request;
    request.set_etag("*");
    request.mutable_change()->set_apply_at_step(999'999);
    request.mutable_change()->add_patches()->set_group("*");
    request.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1e-6);
    client.create_change(request);
  }
  measure([] {});
}

void readers_are_stuck(const std::filesystem::path& run_dir, const Measure& measure) {
  constexpr int kReaders = 16;
  constexpr int kStuck = 4;
  std::atomic<bool> enough = false;
  std::vector<std::jthread> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.emplace_back([&, is_stuck = i < kStuck] {
      ControlClient({.run_dir = run_dir}).stream_metrics({}, [&](const auto&) {
        while (is_stuck && !enough) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return true;
      });
    });
  }
  measure([&] { enough = true; });
}

}  // namespace
}  // namespace fusedbun::control

int main(int argc, char** argv) {
  using namespace fusedbun::control;
  const int steps = argc > 1 ? std::atoi(argv[1]) : 2000;
  measure_job("nobody looks", steps, nobody_looks);
  measure_job("metrics are read, the state polled at 100/s", steps, many_look);
  measure_job("1,000 changes wait for their step", steps, changes_wait);
  measure_job("sixteen read metrics, four are stuck", steps, readers_are_stuck);
}
