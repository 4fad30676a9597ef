#pragma once
// FakeLoop: a training loop without training. It calls a real ControlPort at the moments and in the order in which the step
// engine does, folds changes with the ranks' own ActiveChanges, and remembers what each step used.
//
// Thread safety: all members may be called from any thread.
#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "fusedbun/dist/control/control_server.h"

namespace fusedbun::control {

/// An empty folder that goes with the object.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;  // owns the folder
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Groups "body" and "head" (without momentum), lr 1e-3.
JobDescription two_group_job();
ControlOptions options_in(const std::filesystem::path& run_dir);

/// What every_rpc.h's GetCheckpoint names.
constexpr int64_t kFoundCheckpoint = 7;
/// A whole checkpoint in the run folder.
ControlServer::FoundCheckpoint found_checkpoint();

/// A rank without a model: folds changes as a rank does. One thread at a time.
class FakeRank {
 public:
  explicit FakeRank(changes::ControlPort& port);
  /// The next job step, from its beginning to its end; in between `during`. Returns what was asked of the job.
  changes::LeaveRequest step(const std::function<void(const changes::StepReport&)>& during = {});
  int64_t next_step() const { return next_step_; }
  /// After the last step, as ShardedFusedbun's.
  bool checkpoint_requested() const { return checkpoint_requested_; }
  uint64_t chain_hash() const { return active_.chain_hash(); }

 private:
  changes::StepReport report() const;

  changes::ControlPort& port_;
  std::vector<Options> options_;
  changes::ActiveChanges active_;
  int64_t next_step_ = 0;
  int64_t announced_ = 0;              ///< newest revision in the last header
  bool asked_for_checkpoint_ = false;  ///< in the last header
  bool checkpoint_requested_ = false;
};

class FakeLoop {
 public:
  explicit FakeLoop(changes::ControlPort& port,
                    std::chrono::microseconds step_time = std::chrono::milliseconds(1));
  ~FakeLoop();
  FakeLoop(const FakeLoop&) = delete;  // owns a thread

  /// Stops between two steps, as SIGSTOP would, and goes on.
  void hold() { held_ = true; }
  void go_on() { held_ = false; }
  /// Waits until `step` has ended; false after 10 s.
  bool wait_for_step(int64_t step) const;

  /// Effective learning rates of group 0, [step].
  std::vector<double> learning_rates() const;
  changes::LeaveRequest left() const { return left_; }

 private:
  void run();

  FakeRank rank_;
  const std::chrono::microseconds step_time_;
  mutable std::mutex mutex_;
  std::vector<double> learning_rates_;
  std::atomic<bool> held_ = false;
  std::atomic<bool> ended_ = false;
  std::atomic<changes::LeaveRequest> left_ = changes::LeaveRequest::none;
  std::thread thread_;
};

}  // namespace fusedbun::control
