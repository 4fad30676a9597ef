// A storm of changes on a live control plane: how many per second become durable, how long a client waits, what the steps feel,
// and whether log, ledger and rank agree afterwards.
//
//   change_storm [SECONDS] [CHANGES_PER_SECOND]                       1, 8 and 16 clients in turn, on steps of 2 ms
//   change_storm SECONDS CHANGES_PER_SECOND CLIENTS RUN_DIR           on the job that runs there; prints one object of JSON
//
// Half of the changes have the etag "*", the others read first.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/control/control_client.h"
#include "fusedbun/tests/dist/control/fake_loop.h"

namespace fusedbun::control {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kStep{2};

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

double quantile(std::vector<double>& sorted, double q) {
  return sorted.empty() ? 0
                        : sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

/// Steps until told to stop; what each took beyond its 2 ms.
class Steps {
 public:
  explicit Steps(changes::ControlPort& port) : rank_(port) {
    thread_ = std::jthread([this](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        const auto start = Clock::now();
        rank_.step();
        own_ms_.push_back(ms_since(start));
        std::this_thread::sleep_until(start + kStep);
      }
      for (int i = 0; i < 4; ++i) rank_.step();  // what was announced last is known everywhere
    });
  }
  std::vector<double>& finish() {
    thread_.request_stop();
    thread_.join();
    std::ranges::sort(own_ms_);
    return own_ms_;
  }
  uint64_t chain_hash() const { return rank_.chain_hash(); }

 private:
  FakeRank rank_;
  std::vector<double> own_ms_;
  std::jthread thread_;
};

struct Tally {
  std::mutex mutex;
  std::vector<double> wait_ms;
  std::map<int64_t, int> revisions;
  std::atomic<int> aborted = 0;
  std::atomic<int> refused = 0;
};

void send(ControlClient& client, bool look_first, int number, Tally& tally) {
  v1::CreateChangeRequest request;
  const auto start = Clock::now();
  try {
    request.set_etag(look_first ? client.hyperparameters().etag() : "*");
    request.mutable_change()->add_patches()->set_group("*");
    request.mutable_change()->mutable_patches(0)->mutable_values()->set_eps(1e-6 *
                                                                            (number % 1000 + 1));
    const v1::Change change = client.create_change(request);
    const std::lock_guard lock(tally.mutex);
    tally.wait_ms.push_back(ms_since(start));
    ++tally.revisions[change.revision()];
  } catch (const EtagConflict&) {
    ++tally.aborted;
  } catch (const ConfigError&) {
    ++tally.refused;
  }
}

/// Returns how many seconds it took.
double send_all(const std::filesystem::path& run_dir, int clients, double seconds,
                double per_second, Tally& tally) {
  const auto start = Clock::now();
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < clients; ++i) {
      threads.emplace_back([&, i] {
        ControlClient client({.run_dir = run_dir});
        const auto between = std::chrono::duration<double>(clients / per_second);
        for (int n = 0; ms_since(start) < 1000 * seconds; ++n) {
          std::this_thread::sleep_until(start + std::chrono::duration_cast<Clock::duration>(
                                                    (n + i / double(clients)) * between));
          send(client, n % 2 == 0, n, tally);
        }
      });
    }
  }
  std::ranges::sort(tally.wait_ms);
  return ms_since(start) / 1000;
}

/// Each change that was answered with OK is in the log once, and nothing else is.
bool is_what_was_accepted(const std::vector<changes::LoggedChange>& logged, const Tally& tally) {
  bool same = logged.size() == tally.revisions.size() && !logged.empty();
  for (const auto& [revision, count] : tally.revisions)
    same &= count == 1 && revision <= static_cast<int64_t>(logged.size());
  return same;
}

void storm(int clients, double seconds, double per_second) {
  const TemporaryFolder folder;
  ControlServer server(options_in(folder.path()), two_group_job());
  server.set_state(JobState::running);
  Steps steps(server.port());
  Tally tally;
  const double took = send_all(folder.path(), clients, seconds, per_second, tally);
  std::vector<double>& own_ms = steps.finish();
  const auto logged = changes::read_change_log(folder.path());
  const bool agree =
      is_what_was_accepted(logged, tally) && logged.back().chain_hash == steps.chain_hash();
  std::printf(
      "%2d clients: %6.0f changes/s, %d conflicts, %d refused; wait p50 %.2f p99 %.2f max %.2f ms; "
      "a step's end p50 %.4f p99 %.4f max %.3f ms; log, ledger and rank %s\n",
      clients, static_cast<double>(logged.size()) / took, tally.aborted.load(),
      tally.refused.load(), quantile(tally.wait_ms, 0.5), quantile(tally.wait_ms, 0.99),
      quantile(tally.wait_ms, 1), quantile(own_ms, 0.5), quantile(own_ms, 0.99),
      quantile(own_ms, 1), agree ? "agree" : "DIFFER");
}

void storm_on(const std::filesystem::path& run_dir, int clients, double seconds,
              double per_second) {
  Tally tally;
  const double took = send_all(run_dir, clients, seconds, per_second, tally);
  const bool agree = is_what_was_accepted(changes::read_change_log(run_dir), tally);
  std::printf(
      "{\"seconds\": %.3f, \"accepted\": %zu, \"conflicts\": %d, \"refused\": %d, "
      "\"wait_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f}, \"log_agrees\": %s}\n",
      took, tally.revisions.size(), tally.aborted.load(), tally.refused.load(),
      quantile(tally.wait_ms, 0.5), quantile(tally.wait_ms, 0.99), quantile(tally.wait_ms, 1),
      agree ? "true" : "false");
}

}  // namespace
}  // namespace fusedbun::control

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const double per_second = argc > 2 ? std::atof(argv[2]) : 1000;
  if (argc > 4) {
    fusedbun::control::storm_on(argv[4], std::atoi(argv[3]), seconds, per_second);
    return 0;
  }
  for (const int clients : {1, 8, 16}) fusedbun::control::storm(clients, seconds, per_second);
}
