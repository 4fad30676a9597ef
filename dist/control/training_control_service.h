#pragma once
// TrainingControlService: the RPCs of the contract on one side, the training loop's ControlPort on the other, the ledger and
// the log between them.
//
// Invariants: 1. A change is in the log before anybody is told of it, the training loop included. 2. close_step is atomic
// against CreateChange: a change accepted before it is in the boundary's revision, one after it waits for the next. 3. The
// state only moves forward: starting, running (and paused, there and back), draining, then one of the final ones.
//
// Thread safety: all members, from any thread. Locks, always in this order: ledger_mutex_, progress_mutex_; neither is held
// while a disk or a client is waited for.
#include <atomic>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "fusedbun/control/v1/control.grpc.pb.h"
#include "fusedbun/dist/changes/change_committer.h"
#include "fusedbun/dist/changes/change_history.h"
#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/dist/changes/change_log.h"
#include "fusedbun/dist/changes/control_port.h"
#include "fusedbun/dist/control/authenticator.h"
#include "fusedbun/dist/control/checkpoint_records.h"
#include "fusedbun/dist/control/control_server.h"
#include "fusedbun/dist/control/job_events.h"
#include "fusedbun/dist/control/metrics_streams.h"
#include "fusedbun/dist/control/rate_limit.h"
#include "fusedbun/dist/control/rpc_policy.h"
#include "fusedbun/dist/control/stream_slots.h"
#include "fusedbun/dist/plan/rank_orders.h"
#include "fusedbun/dist/plan/rank_status.h"
#include "fusedbun/dist/plan/step_clock.h"

namespace fusedbun::control {

class TrainingControlService final : public v1::TrainingControl::Service,
                                     public changes::ControlPort {
 public:
  TrainingControlService(const ControlOptions& options, JobDescription job,
                         std::unique_ptr<Authenticator> callers);

  // For the training loop.
  int64_t newest_revision() override;
  Boundary close_step(int64_t job_step) override;
  std::vector<changes::ChangeEntry> entries(int64_t after, int64_t up_to) override;
  void step_finished(const changes::StepReport& report) override;
  Boundary held() override;
  void hold_ended(changes::LeaveRequest leave) override;
  /// See ControlServer.
  void record_metrics(int64_t job_step, std::span<const changes::Metric> metrics);

  // Told by Job of its checkpoints; see ControlServer.
  void offer_checkpoints(const std::vector<ControlServer::FoundCheckpoint>& found);
  void save_started(int64_t job_step);
  void save_refused(int64_t job_step);
  void checkpoint_durable(const CheckpointFacts& facts);
  void save_failed(int64_t job_step, std::string_view problem);
  void checkpoint_deleted(int64_t job_step);

  // For the server.
  void set_ranks(const plan::RankDirectory* ranks);
  void set_orders(plan::RankOrders* orders) { orders_ = orders; }
  void report_lost_rank(const plan::RankStatus& rank);
  void warn(std::string_view sentence);
  /// Streams send what is there, and end.
  void end_streams();
  void set_state(JobState state, std::string_view reason);
  /// Tells watchers when a rank's lateness has turned the job DEGRADED, or back. Asked for again and again.
  void tell_turns();
  /// Ends the job's processes once a forced exit is due. Asked for again and again.
  void leave_if_overdue();
  /// Changes that the run has from its earlier attempts.
  int64_t restored_changes() const { return restored_changes_; }
  bool accepts_changes() const;
  bool is_progressing() const;
  /// What clients have asked for so far.
  changes::LeaveRequest leave_asked() const;
  /// Called without a lock whenever accepts_changes() may have turned. Set before the first call comes in.
  void on_state_change(std::function<void()> observer) { observer_ = std::move(observer); }

  /// Of WatchJob, and again of StreamMetrics; where certificates tell callers apart one of them gets at most half.
  static constexpr int kStreamsMax = 16;

  using Context = grpc::ServerContext;
  grpc::Status GetJob(Context* context, const v1::GetJobRequest* request, v1::Job* reply) override;
  grpc::Status GetHyperparameters(Context* context, const v1::GetHyperparametersRequest* request,
                                  v1::Hyperparameters* reply) override;
  grpc::Status ListHyperparameterSpecs(Context* context,
                                       const v1::ListHyperparameterSpecsRequest* request,
                                       v1::ListHyperparameterSpecsResponse* reply) override;
  grpc::Status CreateChange(Context* context, const v1::CreateChangeRequest* request,
                            v1::Change* reply) override;
  grpc::Status GetChange(Context* context, const v1::GetChangeRequest* request,
                         v1::Change* reply) override;
  grpc::Status ListChanges(Context* context, const v1::ListChangesRequest* request,
                           v1::ListChangesResponse* reply) override;
  grpc::Status DrainJob(Context* context, const v1::DrainJobRequest* request,
                        v1::Job* reply) override;
  grpc::Status StopJob(Context* context, const v1::StopJobRequest* request,
                       v1::Job* reply) override;

  grpc::Status WatchJob(Context* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override;
  grpc::Status ListRanks(Context* context, const v1::ListRanksRequest* request,
                         v1::ListRanksResponse* reply) override;
  grpc::Status StreamMetrics(Context* context, const v1::StreamMetricsRequest* request,
                             grpc::ServerWriter<v1::MetricsSample>* writer) override;

  grpc::Status CancelChange(Context* context, const v1::CancelChangeRequest* request,
                            v1::Change* reply) override;

  grpc::Status CreateCheckpoint(Context* context, const v1::CreateCheckpointRequest* request,
                                v1::Checkpoint* reply) override;
  grpc::Status GetCheckpoint(Context* context, const v1::GetCheckpointRequest* request,
                             v1::Checkpoint* reply) override;
  grpc::Status ListCheckpoints(Context* context, const v1::ListCheckpointsRequest* request,
                               v1::ListCheckpointsResponse* reply) override;

  grpc::Status PauseJob(Context* context, const v1::PauseJobRequest* request,
                        v1::Job* reply) override;
  grpc::Status ResumeJob(Context* context, const v1::ResumeJobRequest* request,
                         v1::Job* reply) override;
  grpc::Status DumpDiagnostics(Context* context, const v1::DumpDiagnosticsRequest* request,
                               v1::Diagnostics* reply) override;

 private:
  // With ledger_mutex_ held:
  void
  observe_progress();  ///< the ledger learns of the last finished step, and watchers what it used
  static v1::Job::State state_message(JobState state);
  /// `degraded` is read before the lock is taken.
  v1::Job job_message(bool degraded) const;
  v1::Change change_message(const changes::AcceptedChange& change) const;
  void change_published(int64_t revision);
  void move_to(JobState state, std::string_view reason, bool degraded);

  /// The ranks have agreed to leave, and nobody asked for it over this service.
  void note_leaving();
  void end_run(JobState state, std::string_view reason, bool degraded);
  changes::ChangeCommitter::Hooks commit_hooks();
  // Take the lock:
  int64_t observed_revision();  ///< the newest, after the ledger has learned of the last step
  v1::Change::State state_of_change(int64_t revision) const;
  /// Reads without the lock: the file of the history may keep its reader waiting. Throws IoError.
  v1::Change find_change(int64_t revision);
  grpc::Status reply_with(int64_t revision, v1::Change* reply);
  grpc::Status dry_run(const changes::ChangeRequest& request, v1::Change* reply);

  // With progress_mutex_ held. A sample waits for what the training loop adds, at most for the next step's end.
  void begin_sample(const changes::StepReport& report, double step_seconds);
  void publish_sample();

  /// Why a stream that was authorized must end: its client has lost the role since.
  std::optional<grpc::Status> lost_role(Rpc rpc, const Context& context);
  std::vector<plan::RankStatus> rank_statuses() const;
  bool is_degraded() const;
  void tell_job(v1::Job job);
  void tell_change(v1::Change change);
  /// Every call begins with this: the caller's role, the contract's later parts, the job's name.
  struct Authorized {
    Caller caller;
    std::string within;  ///< what follows the job in the name
  };
  std::variant<Authorized, grpc::Status> authorize(Rpc rpc, const Context& context,
                                                   const std::string& name);
  /// A repeated request gets its first answer however often it comes.
  std::optional<changes::Refusal> check_rate(const changes::ChangeRequest& request);
  changes::ChangeBatch::Answer commit(changes::ChangeRequest request, const Context& context);
  /// DrainJob, StopJob, PauseJob or ResumeJob.
  struct JobRequest {
    Rpc rpc{};
    std::string actor = {};
    std::string request_id = {};
    std::string reason = {};
    bool preempted = false;
    /// Then the processes end, whatever they do.
    std::optional<int64_t> leave_within_us = {};
    bool operator==(const JobRequest&) const = default;
  };
  static constexpr size_t kJobRequestsMax = 1024;
  struct ForcedExit {
    int64_t at_us = 0;   ///< steady_us()
    bool stops = false;  ///< permanently (exit code 0); else to be started again (75)
    std::string reason = {};
  };
  // With ledger_mutex_ held:
  v1::Checkpoint checkpoint_message(const CheckpointRecord& record) const;
  void tell_checkpoints(const CheckpointRecords::Turned& turned);
  CheckpointRecords::Answer checkpoint_answer(const CheckpointRecords::Request& request) const;
  /// The caller may make it, and it is well formed.
  template <class Message>
  std::variant<JobRequest, grpc::Status> read_job_request(Rpc rpc, const Context& context,
                                                          const Message& message);
  std::optional<changes::Refusal> check_job_request(const JobRequest& request) const;
  static std::string sentence_of(const JobRequest& request);
  void obey(const JobRequest& request, bool degraded);
  // Takes the lock:
  grpc::Status ask(const JobRequest& request, v1::Job* reply);
  plan::RankOrders* orders() const { return orders_; }
  void fill_schedule(const changes::Settings& settings, v1::Hyperparameters& message) const;
  std::string address_of_change(int64_t revision) const;
  std::string address_of_checkpoint(int64_t job_step) const;

  const JobDescription job_;
  const std::filesystem::path run_dir_;
  const std::string run_id_;
  const std::function<void(std::string_view)> notice_;
  const std::string name_;  ///< "jobs/..."
  const std::unique_ptr<Authenticator> authenticator_;
  const int64_t start_time_us_;
  std::function<void()> observer_;
  int64_t restored_changes_ = 0;

  mutable std::mutex ledger_mutex_;
  changes::ChangeLedger ledger_;
  const std::shared_ptr<changes::ChangeLog> log_;
  const std::shared_ptr<changes::ChangeHistory> history_;
  /// ledger_.has_scheduled(), for those without the lock.
  std::atomic<bool> has_scheduled_ = false;
  changes::LeaveRequest leave_ = changes::LeaveRequest::none;
  std::map<std::pair<std::string, std::string>, JobRequest>
      job_requests_;  ///< [actor, request_id], the first of them
  bool pause_asked_ = false;
  std::optional<ForcedExit> forced_exit_;
  CheckpointRecords checkpoints_;
  bool offers_checkpoints_ = false;
  /// One is asked for and may not have begun, for those without the lock.
  std::atomic<bool> awaits_checkpoint_ = false;
  JobState state_ = JobState::starting;
  std::string state_reason_;
  bool told_degraded_ = false;  ///< in the last event about the job

  mutable std::mutex progress_mutex_;
  plan::StepClock clock_;
  std::optional<changes::StepReport> last_report_;
  int64_t last_step_time_us_ = 0;
  std::optional<int64_t> held_since_us_ = {};  ///< steady_us(), while the ranks are held
  std::shared_ptr<TimedSample> sample_;        ///< of the last step, not yet published

  std::mutex rate_mutex_;
  RateLimit rate_;

  mutable std::mutex ranks_mutex_;  ///< held while the directory is asked; no other lock with it
  const plan::RankDirectory* ranks_ = nullptr;
  std::atomic<plan::RankOrders*> orders_ = nullptr;

  JobEvents events_;
  MetricsStreams metrics_;
  StreamSlots watch_slots_;
  StreamSlots metrics_slots_;

  changes::ChangeCommitter commit_;  ///< its thread uses what is above
};

}  // namespace fusedbun::control
