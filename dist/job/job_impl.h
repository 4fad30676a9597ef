#pragma once
// Job::Impl: what a Job consists of, and what happens when a rank is lost.
//
// Thread safety: the job's thread, except on_lost and on_overdue, which the heartbeat's thread calls.
#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "fusedbun/dist/changes/change_schedule.h"
#include "fusedbun/dist/job/connect.h"
#include "fusedbun/dist/job/failure_relay.h"
#include "fusedbun/dist/job/heartbeats.h"
#include "fusedbun/dist/job/job.h"
#include "fusedbun/dist/run_folder/run_folder_lock.h"
#include "fusedbun/dist/step/rank_position_cell.h"
#ifdef FUSEDBUN_HAS_CONTROL
#include "fusedbun/dist/control/control_server.h"
#endif

namespace fusedbun {

class Job::Impl {
 public:
  explicit Impl(JobOptions given);
  ~Impl();
  Impl(const Impl&) = delete;  // owns connections and threads

  void notice(std::string_view sentence) const;
  void serve(ShardedFusedbun& optimizer);
  Checkpointer& open_checkpointer();
  /// Rank 0: what becomes of saves, to the control plane and to the program.
  void tell(const CheckpointEvent& event);
  bool finish(changes::LeaveRequest left, bool has_result);
  /// The lost rank that explains `error`, or nothing.
  std::optional<plan::LostRank> lost_rank_behind(const std::exception& error) const;
  /// Everybody learns that this rank ends with `code`.
  void fail(int code, const std::string& reason) noexcept;
  /// sentence_of(lost); where this rank itself was given up, that comes first; its own failure is told as it is.
  std::string sentence_about(const plan::LostRank& lost) const;
  /// With which code this process leaves because of it.
  ExitCode exit_code_after(const plan::LostRank& lost) const;

  JobOptions options;
  plan::Identity identity;
  FailureRelay gpu_failure;  ///< the watchdog of `connections` tells it
  Connections connections;
  RankPositionCell board;
  std::atomic<int64_t> shard_bytes = 0;
  std::unique_ptr<run_folder::RunFolderLock> lock;
#ifdef FUSEDBUN_HAS_CONTROL
  std::unique_ptr<control::ControlServer> server;
  std::atomic<control::ControlServer*> live_server = nullptr;  ///< for the heartbeat's thread
#endif
  std::unique_ptr<changes::ChangeSchedule> schedule;  ///< rank 0, instead of a server
  changes::ControlPort* port = nullptr;               ///< rank 0, since serve(): of one of the two
  std::unique_ptr<Checkpointer> checkpointer;
  std::atomic<bool> started = false;  ///< `heartbeats` is there
  Heartbeats heartbeats;              ///< its thread uses all of the above

 private:
  void take_run_folder();
  bool may_serve() const;
  /// Rank 0's side of changes; null: nobody changes anything.
  changes::ControlPort* open_port(const ShardedFusedbun& optimizer);
  /// Rank 0, when both are there: clients may ask for checkpoints.
  void offer_checkpoints();
  void start_heartbeats_of_job();
  plan::RankUsage usage() const;
  void abort(const std::string& reason) noexcept;
  std::chrono::milliseconds patience_with_peers() const;
  void on_lost(const plan::LostRank& lost);
  void on_overdue();
  /// What this rank is doing, for DumpDiagnostics.
  std::string describe_rank() const;
  [[noreturn]] void exit_now(int code, const std::string& reason);
};

}  // namespace fusedbun
