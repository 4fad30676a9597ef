#pragma once
// Job: the facade that programs link. It finds out which rank this is, connects the ranks, lets them
// watch over one another, and, where a run folder is given, serves the control plane from rank 0.
//
//   fusedbun::Job job;                               // under torchrun, mpirun, or alone
//   fusedbun::ShardedFusedbun optimizer(job.channels(), model->named_parameters(),
//                                       fusedbun::FusedbunOptions::recommended(3e-3));
//   job.serve(optimizer);                            // optional: fusedbun status, set, health
//   ...
//   job.finish(optimizer.leave_request());           // catch (const std::exception& e) { job.fail(e); }
//
// Invariants: 1. The job outlives the optimizers made from its channels. 2. Constructing it is
// collective. 3. An error on rank 0 alone (run folder in use, socket taken) is the same error on
// every rank. 4. When a rank is lost, every wait of the others ends with a PeerLostError that names
// it, error.json in the run folder says the same, and a process that has not left by itself within
// max(lost limit, 5 s) is ended with exit code 76 (after its own failure with that one's). 5. A rank
// that lives is waited for: only heartbeats, or hang_us (then 124), end a job.
//
// Thread safety: one thread at a time, except for ranks().
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"
#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/rank_watch.h"
#include "fusedbun/dist/snapshot/checkpointer.h"
#include "fusedbun/dist/step/sharded_fusedbun.h"

namespace fusedbun {

struct JobOptions {
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  plan::IdentityFlags identity = {};
  /// Name and version of the program. If they, or the library's, differ among ranks, the job is refused (ConfigError).
  std::string program = {};
  /// Everything a run writes. Empty: nothing is written and there is no control plane.
  std::filesystem::path run_dir = {};
  /// Serve the control plane on <run_dir>/control.sock from rank 0 (serve() does it).
  bool control = true;
  /// Where it listens instead: "127.0.0.1:PORT".
  std::string control_address = {};
  /// Folder with ca.pem, server.pem, server.key and roles: TLS with certificates on both sides,
  /// which an address off loopback needs.
  std::filesystem::path control_credentials = {};
  bool insecure_control = false;  ///< plaintext off loopback nevertheless; warns each minute
  double control_rate = 50;       ///< changes per second of one actor; 0: any number
  /// Changes of hyperparameters that are known before the first step (TOML, changes/changes_file.h);
  /// read by rank 0. Used with and without a control plane.
  std::filesystem::path changes = {};
  /// The job's parameters are on GPUs: local rank r takes the r-th that its process sees (modulo their number), and two ranks on one are refused.
  bool use_gpu = false;
  /// Several ranks may be on one GPU, to try a job where there are fewer GPUs than ranks; NCCL 2.30 or newer.
  bool share_gpu = false;
  /// Of connecting; where the ranks cannot have heartbeats (a notice says so) also of every wait but
  /// finish(), which lasts as long as health.hang_us.
  std::chrono::milliseconds timeout{60'000};
  plan::HealthLimits health = {};  ///< heartbeats, and how long is too long
  int64_t total_steps = 0;         ///< for progress; 0: unknown
  int keep_checkpoints = 3;        ///< of the run folder; 0: all
  /// Called on rank 0 when a checkpoint is durable, from the thread that writes it.
  std::function<void(const SavedCheckpoint&)> checkpoint_saved = {};
  /// Called with one sentence a person should know; default: stderr on rank 0.
  std::function<void(std::string_view)> notice = {};
};

class Job {
 public:
  /// Throws ConfigError (identity, backend), DeviceError (no GPU to use), UnavailableError (address or
  /// run folder in use), PeerLostError, TimeoutError.
  explicit Job(JobOptions options = {});
  ~Job();
  Job(const Job&) = delete;

  const plan::Identity& identity() const;
  int rank() const { return identity().rank; }
  int world_size() const { return identity().world_size; }
  const plan::BackendChoice& backend() const;
  /// Where this rank's parameters are to be: `model->to(job.placement().device)`. The constructor makes that GPU the current one of
  /// its thread.
  const Placement& placement() const;
  Channels channels();

  /// What this rank does outside the optimizer, for those who watch: validate, save. Returns what it
  /// did before, to go back to. Such a phase is no stall; a job in which no rank ends a step or changes
  /// its phase for `health.hang_us` is ended.
  plan::Phase enter(plan::Phase phase);

  /// Where all ranks stand, as rank 0 hears it by the heartbeats; empty without them. Any thread may ask.
  std::vector<plan::RankStatus> ranks() const;

  /// As JobOptions::total_steps, for a program that finds out after the job is connected. Before serve().
  void set_total_steps(int64_t total_steps);

  /// Connects the control plane to the optimizer; collective. Without a run folder, or without gRPC
  /// built in, it says so once, and only the changes of the file reach the optimizer.
  void serve(ShardedFusedbun& optimizer);
  /// "unix:/path/control.sock", or empty when nothing is served.
  std::string control_address() const;
  /// The changes (after, up_to] that this job has accepted, in order of revision. Rank 0's; empty elsewhere, and before serve().
  std::vector<changes::ChangeEntry> accepted_changes(int64_t after, int64_t up_to) const;
  /// Saves a checkpoint to <run_dir>/checkpoints while training goes on, and brings the newest one back (checkpointer.h says what
  /// each does, and throws). Collective, between two steps; resume() before serve(), so that changes go on where they were. finish()
  /// waits for the save that is still being written.
  SaveStart save(const CheckpointContents& contents);
  std::optional<Loaded> resume(const CheckpointContents& contents, const LoadOptions& options = {});
  /// The same object; made by the first call. Throws ConfigError without a run folder. Collective.
  Checkpointer& checkpointer();

  /// Adds numbers of the step that has just ended ("loss") to what StreamMetrics tells. Rank 0's
  /// count; elsewhere, and without a control plane, nothing happens.
  void record_metrics(int64_t job_step, std::span<const changes::Metric> metrics);

  /// The run ends, at its last step (none) or before it on request: waits for all ranks, however long
  /// one of them still saves, sets the job's final state, takes the control plane down. Collective; the optimizer is finished before.
  /// `has_result` is false on a rank that was told to leave without what it was to save. Returns whether all ranks have theirs.
  bool finish(changes::LeaveRequest left = changes::LeaveRequest::none, bool has_result = true);
  /// What the control plane has been asked for by now, agreed on or not; none on other ranks than 0 and without one.
  changes::LeaveRequest leave_asked() const;
  /// This rank fails with `error`, in whose handler this is called: tells the peers, the control
  /// plane and error.json, and throws. A PeerLostError that names the lost rank if that is why,
  /// waiting for its name at most as long as the heartbeats allow; a TimeoutError that says where each
  /// rank is if the job hung; a DeviceError for LibTorch's errors of a GPU (out of memory); else `error` itself.
  [[noreturn]] void fail(const std::exception& error);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fusedbun
