#include "fusedbun/dist/control/training_control_service.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/change_restore.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/resource_name.h"
#include "fusedbun/dist/control/steady_time.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::control {
namespace {

using google::protobuf::util::TimeUtil;

/// How long the end of a run waits for the disk of changes.log.
constexpr std::chrono::seconds kEndPatience{10};

std::vector<changes::LedgerGroup> named_groups(const JobDescription& job) {
  for (auto group = job.groups.begin(); group != job.groups.end(); ++group) {
    const bool taken = std::ranges::find(job.groups.begin(), group, group->name,
                                         &changes::LedgerGroup::name) != group;
    FUSEDBUN_REQUIRE(
        !taken && !group->name.empty() && group->name != "*" && group->name != "all", ConfigError,
        "param group name '" + group->name + "' is taken, empty, \"*\" or \"all\": choose another");
  }
  return job.groups;
}

}  // namespace

TrainingControlService::TrainingControlService(const ControlOptions& options, JobDescription job,
                                               std::unique_ptr<Authenticator> callers)
    : job_(std::move(job)),
      run_dir_(options.run_dir),
      run_id_(options.run_id),
      notice_(options.notice),
      name_(job_name(options.run_id)),
      authenticator_(std::move(callers)),
      start_time_us_(run_folder::utc_now_us()),
      ledger_(named_groups(job_), job_.max_grad_norm, 0, job_.capabilities, job_.total_steps),
      log_(std::make_shared<changes::ChangeLog>(options.run_dir)),
      history_(std::make_shared<changes::ChangeHistory>(options.run_dir)),
      clock_(std::chrono::microseconds(options.stall_timeout).count()),
      rate_(options.changes_per_second),
      watch_slots_(kStreamsMax, authenticator_->tells_apart() ? kStreamsMax / 2 : kStreamsMax),
      metrics_slots_(kStreamsMax, authenticator_->tells_apart() ? kStreamsMax / 2 : kStreamsMax),
      commit_(ledger_, ledger_mutex_, log_, history_, commit_hooks()) {
  const changes::LoggedRun run = log_->take_run();
  changes::require_same_changes(run, job_.known_revision, job_.chain_hash);
  changes::restore_changes(ledger_, run);
  ledger_.begin_at(job_.first_step);
  events_.begin_attempt(run.attempts);
  restored_changes_ = ledger_.newest_revision();
  std::vector<changes::AcceptedChange> scheduled =
      changes::accept_scheduled(ledger_, options.changes);
  log_->begin(options.run_id);
  if (!scheduled.empty()) log_->append(scheduled, ledger_.groups());
  for (changes::AcceptedChange& change : scheduled) ledger_.commit(std::move(change));
  has_scheduled_ = ledger_.has_scheduled();
}

changes::ChangeCommitter::Hooks TrainingControlService::commit_hooks() {
  return {.observe = [this] { observe_progress(); },
          .refused_by_state = [this] { return refused_in(Rpc::create_change, state_); },
          .published = [this](int64_t revision) { change_published(revision); },
          .text_of =
              [this](const changes::AcceptedChange& change) {
                return change_message(change).SerializeAsString();
              }};
}

int64_t TrainingControlService::newest_revision() {
  const std::lock_guard lock(ledger_mutex_);
  return ledger_.newest_revision();
}

changes::ControlPort::Boundary TrainingControlService::close_step(int64_t job_step) {
  const std::lock_guard lock(ledger_mutex_);
  ledger_.close_step(job_step);
  return {.newest_revision = ledger_.newest_revision(),
          .leave = leave_,
          .checkpoint = checkpoints_.take_request(),
          .pause = pause_asked_};
}

changes::ControlPort::Boundary TrainingControlService::held() {
  const bool degraded = is_degraded();
  Boundary boundary;
  std::string turned;
  {
    const std::lock_guard lock(ledger_mutex_);
    boundary = {.leave = leave_, .pause = pause_asked_};
    if (pause_asked_ && state_ == JobState::running) {
      move_to(JobState::paused, {}, degraded);
      const std::lock_guard progress(progress_mutex_);
      held_since_us_ = steady_us();
      turned =
          "paused before step " + std::to_string(ledger_.current_step()) + ": " + state_reason_;
    }
  }
  if (turned.empty()) return boundary;
  if (notice_) notice_(turned);
  if (observer_) observer_();
  return boundary;
}

void TrainingControlService::hold_ended(changes::LeaveRequest leave) {
  {
    const std::lock_guard progress(progress_mutex_);
    if (!held_since_us_) return;  // resumed before the ranks were held
    const int64_t now = steady_us();
    clock_.pause(now - *std::exchange(held_since_us_, std::nullopt), now);
  }
  if (leave == changes::LeaveRequest::none) {
    if (notice_) notice_("resumed");
  } else {
    note_leaving();
  }
}

std::vector<changes::ChangeEntry> TrainingControlService::entries(int64_t after, int64_t up_to) {
  const std::lock_guard lock(ledger_mutex_);
  return ledger_.entries(after, up_to);
}

void TrainingControlService::step_finished(const changes::StepReport& report) {
  {
    const std::lock_guard lock(progress_mutex_);
    last_report_ = report;
    last_step_time_us_ = run_folder::utc_now_us();
    const int64_t step_us = clock_.step_ended(steady_us());
    begin_sample(report, static_cast<double>(step_us) / 1e6);
  }
  if (report.leave != changes::LeaveRequest::none) note_leaving();
  if (!has_scheduled_ && !awaits_checkpoint_) return;
  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  tell_checkpoints(checkpoints_.step_ended(report.job_step));
  awaits_checkpoint_ = checkpoints_.is_requested();
}

void TrainingControlService::note_leaving() {
  const bool degraded = is_degraded();
  {
    const std::lock_guard lock(ledger_mutex_);
    if (state_ != JobState::running && state_ != JobState::paused)
      return;  // asked over this service, which has said so
    move_to(JobState::draining, "asked by a signal, or by the program itself", degraded);
  }
  if (observer_) observer_();
}

void TrainingControlService::set_state(JobState state, std::string_view reason) {
  const bool degraded = is_degraded();
  if (is_final(state)) {
    end_run(state, reason, degraded);
  } else {
    const std::lock_guard lock(ledger_mutex_);
    if (!is_final(state_) && state >= state_) move_to(state, reason, degraded);
  }
  if (observer_) observer_();
}

void TrainingControlService::move_to(JobState state, std::string_view reason, bool degraded) {
  state_ = state;
  if (!reason.empty() || is_final(state)) state_reason_ = reason;
  told_degraded_ = degraded && state == JobState::running;
  tell_job(job_message(degraded));
}

void TrainingControlService::tell_turns() {
  const bool degraded = is_degraded();
  const std::lock_guard lock(ledger_mutex_);
  if (state_ != JobState::running || degraded == told_degraded_) return;
  told_degraded_ = degraded;
  tell_job(job_message(degraded));
}

void TrainingControlService::end_run(JobState state, std::string_view reason, bool degraded) {
  std::vector<int64_t> rejected;
  int64_t step = 0;
  {
    const std::lock_guard lock(ledger_mutex_);
    if (is_final(state_)) return;
    observe_progress();
    rejected = ledger_.end_run();
    has_scheduled_ = false;
    step = ledger_.current_step();
    for (const int64_t revision : rejected) tell_change(change_message(ledger_.change(revision)));
    tell_checkpoints(checkpoints_.run_ended());
    {
      const std::lock_guard progress(progress_mutex_);
      publish_sample();
      metrics_.end();
    }
    move_to(state, reason, degraded);
  }
  // The run ends even if this cannot be written: the changes are in the log, and what is missing is that some of them
  // were never used.
  static_cast<void>(
      commit_.append_run_end({.step = step,
                              .state = v1::Job::State_Name(state_message(state)),
                              .again = state != JobState::succeeded && state != JobState::stopped,
                              .diverged = state == JobState::diverged,
                              .rejected = std::move(rejected)},
                             changes::ChangeCommitter::Clock::now() + kEndPatience));
}

changes::LeaveRequest TrainingControlService::leave_asked() const {
  const std::lock_guard lock(ledger_mutex_);
  return leave_;
}

bool TrainingControlService::accepts_changes() const {
  const std::lock_guard lock(ledger_mutex_);
  return state_ == JobState::running || state_ == JobState::paused;
}

bool TrainingControlService::is_progressing() const {
  // Who hears the ranks also knows their phases: while they start, validate or save, no step is expected.
  const std::vector<plan::RankStatus> ranks = rank_statuses();
  if (!ranks.empty()) return ranks.front().liveness != plan::Liveness::stalled;
  const std::lock_guard lock(progress_mutex_);
  return held_since_us_ || clock_.is_progressing(steady_us());
}

void TrainingControlService::observe_progress() {
  std::vector<int64_t> applied;
  {
    const std::lock_guard lock(progress_mutex_);
    if (last_report_) applied = ledger_.observe(*last_report_);
  }
  for (const int64_t revision : applied) tell_change(change_message(ledger_.change(revision)));
  has_scheduled_ = ledger_.has_scheduled();
}

void TrainingControlService::change_published(int64_t revision) {
  const changes::AcceptedChange& change = ledger_.change(revision);
  tell_change(change_message(change));
  if (change.request.cancels) tell_change(change_message(ledger_.change(*change.request.cancels)));
  has_scheduled_ = ledger_.has_scheduled();
}

bool TrainingControlService::is_degraded() const {
  return std::ranges::any_of(rank_statuses(), [](const plan::RankStatus& rank) {
    return rank.liveness == plan::Liveness::late || rank.liveness == plan::Liveness::lost;
  });
}

std::variant<TrainingControlService::Authorized, grpc::Status> TrainingControlService::authorize(
    Rpc rpc, const Context& context, const std::string& name) {
  auto caller = authenticator_->identify(context);
  if (const auto* refusal = std::get_if<changes::Refusal>(&caller)) return to_status(*refusal);
  Authorized authorized{std::get<Caller>(std::move(caller)), {}};
  if (const auto refusal = refused_for(rpc, authorized.caller.role)) return to_status(*refusal);
  const auto within = strip_job_prefix(name, name_);
  if (const auto* refusal = std::get_if<changes::Refusal>(&within)) return to_status(*refusal);
  authorized.within = std::get<std::string_view>(within);
  return authorized;
}

std::optional<grpc::Status> TrainingControlService::lost_role(Rpc rpc, const Context& context) {
  if (!authenticator_->tells_apart()) return std::nullopt;
  const auto caller = authenticator_->identify(context);
  if (const auto* refusal = std::get_if<changes::Refusal>(&caller)) return to_status(*refusal);
  const auto refusal = refused_for(rpc, std::get<Caller>(caller).role);
  return refusal ? std::optional(to_status(*refusal)) : std::nullopt;
}

std::optional<changes::Refusal> TrainingControlService::check_rate(
    const changes::ChangeRequest& request) {
  {
    const std::lock_guard lock(ledger_mutex_);
    if (commit_.is_repeated(request)) return std::nullopt;
  }
  const std::lock_guard lock(rate_mutex_);
  if (rate_.allows(request.actor, steady_us())) return std::nullopt;
  return changes::Refusal{changes::RefusalKind::resource_exhausted,
                          "RATE_LIMITED",
                          request.actor + " exceeds this job's limit of changes per second",
                          {}};
}

}  // namespace fusedbun::control
