#pragma once
// ControlServer: the control plane of one job, served by rank 0. It listens, answers people and
// tools over gRPC, and hands the training loop a ControlPort through which accepted changes and
// leave requests reach it at step boundaries.
//
// Invariants: 1. While an object lives, <run_dir>/control.json says where it listens; it is gone
// after shutdown(). 2. Nobody but this user can open the socket (0600); TCP is served on loopback
// only. 3. The training thread never waits for a client: close_step waits at most for a change that
// is being written to the log, step_finished for nothing.
//
// Needs no gRPC headers, so it may be included beside LibTorch. Thread safety: all members may be
// called from any thread.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/dist/plan/control_port.h"
#include "fusedbun/dist/plan/rank_status.h"

namespace fusedbun::control {

struct ControlOptions {
  /// Holds control.json, changes.log and, by default, control.sock. Made with mode 0700 if it is
  /// missing.
  std::filesystem::path run_dir;
  /// Empty: the Unix socket <run_dir>/control.sock. Else "127.0.0.1:PORT", "[::1]:PORT" or
  /// "localhost:PORT"; port 0 takes a free one.
  std::string address = {};
  std::string run_id = "run";
  /// Health name fusedbun.progress is SERVING only while steps end within max(stall_timeout, 10
  /// median steps).
  std::chrono::milliseconds stall_timeout{5'000};
};

/// One param group as the job starts with it.
struct GroupDescription {
  std::string name;             ///< how people name it in changes; unique, not "*" or "all"
  int64_t parameter_count = 0;  ///< elements
  Options options;
};

/// What the job is; does not change while it runs.
struct JobDescription {
  int world_size = 1;
  int64_t first_step = 0;   ///< the job step that comes first (not 0 after a checkpoint was loaded)
  int64_t total_steps = 0;  ///< 0: unknown
  int restart_count = 0;
  std::string version = {};  ///< of this program
  std::string backend = {};  ///< "gloo"
  double max_grad_norm = 0;  ///< 0: off
  std::vector<GroupDescription> groups = {};
};

enum class JobState : uint8_t { starting, running, draining, succeeded, failed, stopped };

class ControlServer {
 public:
  /// Listens at once, in state `starting` (changes are refused until set_state(running)). Throws
  /// UnavailableError (69) if a live job has the address, naming its pid where it can be found;
  /// ConfigError (78) for an address that is not loopback; PermissionError (77) if others may write
  /// the run folder; IoError (74).
  ControlServer(ControlOptions options, JobDescription job);
  ~ControlServer();                              ///< shutdown()
  ControlServer(const ControlServer&) = delete;  // owns a listener and its threads
  ControlServer& operator=(const ControlServer&) = delete;

  /// For ShardedFusedbun::set_control; lives as long as this object, also after shutdown().
  plan::ControlPort& port();

  /// Moves the job on; succeeded, failed and stopped are final, and later calls are ignored.
  /// `reason` is one sentence for people ("left at step 120: SIGTERM").
  void set_state(JobState state, std::string_view reason = {});

  /// Who knows the ranks, for ListRanks and the state DEGRADED; null (as at the start): nobody, and
  /// ListRanks is empty. It lives until shutdown() or until another is set.
  void set_ranks(const plan::RankDirectory* ranks);
  /// Tells whoever watches the job.
  void report_lost_rank(const plan::RankStatus& rank);
  void warn(std::string_view sentence);
  /// Adds what the training loop knows of its last finished step ("loss") to that step's sample of
  /// StreamMetrics. A sample leaves when this is called, else when the next step ends.
  void record_metrics(int64_t job_step, std::span<const plan::Metric> metrics);

  /// "unix:/runs/a/control.sock" or "127.0.0.1:41373".
  std::string address() const;

  /// Health turns NOT_SERVING, calls under way end (within 0.5 s), control.json and the socket go.
  /// May be called twice.
  void shutdown() noexcept;

 private:
  class Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace fusedbun::control
