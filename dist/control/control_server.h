#pragma once
// ControlServer: the control plane of one job, served by rank 0. It listens, answers people and
// tools over gRPC, and hands the training loop a ControlPort through which accepted changes and
// leave requests reach it at step boundaries.
//
// Invariants: 1. While an object lives, <run_dir>/control.json says where it listens; it is gone
// after shutdown(). 2. Nobody but this user can open the socket (0600); a port of loopback asks for
// the token in control.json (0600), another one for a certificate, unless `insecure`. 3. The training
// thread never waits for a client or for the disk.
//
// Needs no gRPC headers, so it may be included beside LibTorch. Thread safety: all members may be
// called from any thread.
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/core/options.h"
#include "fusedbun/dist/changes/change_schedule.h"
#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/plan/rank_orders.h"
#include "fusedbun/dist/plan/rank_status.h"

namespace fusedbun::control {

struct ControlOptions {
  /// Holds control.json, changes.log and, by default, control.sock. Made with mode 0700 if it is
  /// missing.
  std::filesystem::path run_dir;
  /// Empty: the Unix socket <run_dir>/control.sock. Else "HOST:PORT" with an IP address of this
  /// machine or "localhost"; port 0 takes a free one. Off loopback it needs credentials, or
  /// `insecure`.
  std::string address = {};
  /// Under which addresses other hosts reach this one, as numbers: what control.json names for a job
  /// that listens on all interfaces (0.0.0.0, [::]).
  std::vector<std::string> host_addresses = {};
  /// What a client must show on a port of loopback, which every user of the machine can open
  /// ("authorization: Bearer TOKEN"). Empty: one is made. control.json has it, mode 0600.
  std::string token = {};
  /// Folder with ca.pem, server.pem, server.key and roles (authenticator.h): TLS, with certificates on both
  /// sides. Files that change are read again. Empty: plaintext.
  std::filesystem::path credentials = {};
  /// With certificates a connection ends after a while, and its streams a little later, so that a certificate that has expired or
  /// was taken back is found out; clients open the next one by themselves.
  std::chrono::milliseconds connection_age{std::chrono::minutes(10)};
  std::chrono::milliseconds connection_age_grace{std::chrono::minutes(1)};
  bool insecure = false;  ///< plaintext off loopback; warns each minute
  /// How many changes one actor may make per second, after a burst of as many; 0: any number.
  double changes_per_second = 50;
  std::string run_id = "run";
  /// Health name fusedbun.progress: where the ranks are known (set_ranks), SERVING unless rank 0 is
  /// stalled; else only while steps end within max(stall_timeout, 10 median steps).
  std::chrono::milliseconds stall_timeout{5'000};
  /// Changes of the job's file, used at exactly their steps.
  std::vector<changes::ScheduledChange> changes = {};
  /// Called with one sentence that the job's owner should know; from any thread.
  std::function<void(std::string_view)> notice = {};
};

/// What the job is; does not change while it runs.
struct JobDescription {
  int world_size = 1;
  int64_t first_step = 0;  ///< the job step that comes first (not 0 after a checkpoint was loaded)
  /// The newest change that the job knew when that checkpoint was saved, and the hash of all up to it; 0: none.
  int64_t known_revision = 0;
  uint64_t chain_hash = 0;
  int64_t total_steps = 0;  ///< 0: unknown
  int restart_count = 0;
  std::string version = {};  ///< of this program
  std::string backend = {};  ///< "gloo"
  double max_grad_norm = 0;  ///< 0: off
  changes::JobCapabilities capabilities = {};
  /// As the job starts with them; names are unique, not empty, "*" or "all".
  std::vector<changes::LedgerGroup> groups = {};
};

/// A checkpoint that is durable.
struct CheckpointFacts {
  int64_t job_step = 0;     ///< steps done when it was taken
  int64_t bytes = 0;        ///< of all ranks
  int world_size = 0;       ///< ranks that wrote it
  std::string digest = {};  ///< 16 bytes, of its manifest
  std::filesystem::path folder = {};
  int64_t written_us = 0;  ///< Unix time
};

/// In the order in which they come, except for `paused`; from `succeeded` on they are final.
enum class JobState : uint8_t {
  starting,
  running,
  paused,  ///< held between two steps; goes on as `running`
  draining,
  succeeded,
  failed,
  diverged,  ///< failed of the values it used, so that another attempt would too; FAILED in the contract
  drained,  ///< left before the end, to be run again; STOPPED in the contract
  stopped,  ///< left for good
};
/// The job has ended; nothing follows.
constexpr bool is_final(JobState state) {
  return state >= JobState::succeeded;
}

class ControlServer {
 public:
  /// Listens at once, in state `starting` (changes are refused until set_state(running)). Throws
  /// UnavailableError (69) if a live job has the address, naming its pid where it can be found;
  /// ConfigError (78) for an address off loopback without credentials and without `insecure`; PermissionError (77) if others may write
  /// the run folder; ConfigError for changes, of the file or of an earlier attempt of the run, that
  /// do not fit the job; DataError (65) for a damaged changes.log; IoError (74).
  ControlServer(ControlOptions options, JobDescription job);
  ~ControlServer();                              ///< shutdown()
  ControlServer(const ControlServer&) = delete;  // owns a listener and its threads
  ControlServer& operator=(const ControlServer&) = delete;

  /// For ShardedFusedbun::set_control; lives as long as this object, also after shutdown().
  changes::ControlPort& port();

  /// Changes that changes.log has from earlier attempts of the run; they apply again at their steps.
  int64_t restored_changes() const;

  /// Moves the job on; from succeeded on they are final, and later calls are ignored.
  /// `reason` is one sentence for people ("left at step 120: SIGTERM").
  void set_state(JobState state, std::string_view reason = {});

  /// What clients have asked for so far by DrainJob and StopJob.
  changes::LeaveRequest leave_asked() const;
  /// Who knows the ranks, for ListRanks, progress and the state DEGRADED; null (as at the start): nobody, and
  /// ListRanks is empty. It lives until shutdown() or until another is set.
  void set_ranks(const plan::RankDirectory* ranks);
  /// The interface that reaches the ranks, for DumpDiagnostics, StopJob with force and DrainJob with a deadline; null (as at the start): nobody, and they
  /// are refused. It lives as long as this object.
  void set_orders(plan::RankOrders* orders);
  /// Tells the job's watchers.
  void report_lost_rank(const plan::RankStatus& rank);
  void warn(std::string_view sentence);
  /// Adds what the training loop knows of its last finished step ("loss") to that step's sample of
  /// StreamMetrics. A sample leaves when this is called, else when the next step ends.
  void record_metrics(int64_t job_step, std::span<const changes::Metric> metrics);

  /// The program saves checkpoints, and does so when it is asked to (ControlPort::Boundary::checkpoint). Before that CreateCheckpoint is
  /// refused. `damage` is what is wrong with one that was found in the run folder.
  struct FoundCheckpoint {
    CheckpointFacts facts;
    std::string damage;
  };
  void offer_checkpoints(const std::vector<FoundCheckpoint>& found);
  /// What becomes of a save, for clients and for who watches.
  void save_started(int64_t job_step);
  void save_refused(int64_t job_step);  ///< another one is still being written
  void checkpoint_durable(const CheckpointFacts& facts);
  void save_failed(int64_t job_step, std::string_view problem);
  void checkpoint_deleted(int64_t job_step);

  /// "unix:/runs/a/control.sock" or "127.0.0.1:41373".
  std::string address() const;

  /// Health turns NOT_SERVING, calls under way end (within 0.5 s), control.json and the socket go.
  /// May be called twice.
  void shutdown() noexcept;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fusedbun::control
