#include "fusedbun/dist/control/training_control_service.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/resource_name.h"

namespace fusedbun::control {
namespace {

using google::protobuf::util::TimeUtil;

int64_t now_us() {
  return TimeUtil::TimestampToMicroseconds(TimeUtil::GetCurrentTime());
}

int64_t steady_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::vector<plan::LedgerGroup> ledger_groups(const JobDescription& job) {
  std::vector<plan::LedgerGroup> groups;
  for (const GroupDescription& group : job.groups) {
    const bool taken =
        std::ranges::find(groups, group.name, &plan::LedgerGroup::name) != groups.end();
    FUSEDBUN_REQUIRE(
        !taken && !group.name.empty() && group.name != "*" && group.name != "all", ConfigError,
        "param group name '" + group.name + "' is taken, empty, \"*\" or \"all\": choose another");
    groups.push_back({group.name, group.parameter_count, group.options});
  }
  return groups;
}

bool is_final(JobState state) {
  return state == JobState::succeeded || state == JobState::failed || state == JobState::stopped;
}

v1::Job::State message_of(JobState state) {
  switch (state) {
    case JobState::starting:
      return v1::Job::STARTING;
    case JobState::running:
      return v1::Job::RUNNING;
    case JobState::draining:
      return v1::Job::DRAINING;
    case JobState::succeeded:
      return v1::Job::SUCCEEDED;
    case JobState::failed:
      return v1::Job::FAILED;
    case JobState::stopped:
      return v1::Job::STOPPED;
  }
  FUSEDBUN_ASSERT(false, "every job state has a name in the contract");
}

}  // namespace

TrainingControlService::TrainingControlService(const ControlOptions& options, JobDescription job,
                                               std::string actor)
    : job_(std::move(job)),
      run_id_(options.run_id),
      name_(job_name(options.run_id)),
      actor_(std::move(actor)),
      start_time_us_(now_us()),
      ledger_(ledger_groups(job_), job_.max_grad_norm, job_.first_step),
      log_(options.run_dir, options.run_id),
      clock_(std::chrono::microseconds(options.stall_timeout).count()) {}

plan::ControlPort::Boundary TrainingControlService::close_step(int64_t job_step) {
  const std::lock_guard lock(ledger_mutex_);
  ledger_.close_step(job_step);
  return {.newest_revision = ledger_.newest_revision(), .leave = leave_};
}

std::vector<plan::ChangeEntry> TrainingControlService::entries(int64_t after, int64_t up_to) {
  const std::lock_guard lock(ledger_mutex_);
  return ledger_.entries(after, up_to);
}

void TrainingControlService::step_finished(const plan::StepReport& report) {
  const std::lock_guard lock(progress_mutex_);
  last_report_ = report;
  last_step_time_us_ = now_us();
  const int64_t step_us = clock_.step_ended(steady_us());
  begin_sample(report, static_cast<double>(step_us) / 1e6);
}

void TrainingControlService::set_state(JobState state, std::string_view reason) {
  const bool degraded = is_degraded();
  {
    const std::lock_guard lock(ledger_mutex_);
    if (is_final(state_) || state < state_) return;
    state_ = state;
    if (!reason.empty() || is_final(state)) state_reason_ = reason;
    if (is_final(state)) {
      observe_progress();
      ledger_.end_run();
      log_end();
      const std::lock_guard progress(progress_mutex_);
      publish_sample();
    }
    tell_job(job_message(degraded));
  }
  if (observer_) observer_();
}

void TrainingControlService::log_end() {
  std::vector<int64_t> rejected;
  for (int64_t revision = 1; revision <= ledger_.newest_revision(); ++revision) {
    if (ledger_.state_of(ledger_.change(revision)) == plan::ChangeState::rejected)
      rejected.push_back(revision);
  }
  try {
    log_.append_end(ledger_.current_step(), v1::Job::State_Name(message_of(state_)), rejected);
  } catch (const IoError&) {
    // The run ends all the same, and the changes are in the log; what is missing is that they were never used.
  }
}

bool TrainingControlService::accepts_changes() const {
  const std::lock_guard lock(ledger_mutex_);
  return state_ == JobState::running;
}

bool TrainingControlService::is_progressing() const {
  const std::lock_guard lock(progress_mutex_);
  return clock_.is_progressing(steady_us());
}

void TrainingControlService::observe_progress() {
  const std::lock_guard lock(progress_mutex_);
  if (last_report_) ledger_.observe(*last_report_);
}

bool TrainingControlService::is_degraded() const {
  return std::ranges::any_of(rank_statuses(), [](const plan::RankStatus& rank) {
    return rank.liveness != plan::Liveness::alive;
  });
}

v1::Job TrainingControlService::job_message(bool degraded) const {
  v1::Job job;
  job.set_name(name_);
  job.set_state(degraded && state_ == JobState::running ? v1::Job::DEGRADED : message_of(state_));
  job.set_state_reason(state_reason_);
  job.set_total_steps(job_.total_steps);
  job.set_world_size(job_.world_size);
  *job.mutable_start_time() = TimeUtil::MicrosecondsToTimestamp(start_time_us_);
  job.set_run_id(run_id_);
  job.set_restart_count(job_.restart_count);
  job.set_version(job_.version);
  job.set_backend(job_.backend);
  const std::lock_guard lock(progress_mutex_);
  job.set_step(last_report_ ? last_report_->job_step + 1 : job_.first_step);
  if (last_report_) {
    job.set_config_revision(last_report_->active_revision);
    job.set_skipped_steps(last_report_->skipped_steps);
    *job.mutable_last_step_time() = TimeUtil::MicrosecondsToTimestamp(last_step_time_us_);
  }
  return job;
}

grpc::Status TrainingControlService::GetJob(Context*, const v1::GetJobRequest* request,
                                            v1::Job* reply) {
  const auto within = within_job(request->name(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  const bool degraded = is_degraded();
  const std::lock_guard lock(ledger_mutex_);
  *reply = job_message(degraded);
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::DrainJob(Context*, const v1::DrainJobRequest* request,
                                              v1::Job* reply) {
  if (request->has_deadline()) {
    return to_status({plan::RefusalKind::unimplemented,
                      "NOT_IN_THIS_VERSION",
                      "DrainJob with a deadline is not in this version: leave it out",
                      {}});
  }
  return ask_to_leave(plan::LeaveRequest::drain, request->name(), request->reason(), reply);
}

grpc::Status TrainingControlService::StopJob(Context*, const v1::StopJobRequest* request,
                                             v1::Job* reply) {
  if (request->force()) {
    return to_status(
        {plan::RefusalKind::unimplemented,
         "NOT_IN_THIS_VERSION",
         "StopJob with force is not in this version: leave it out, or end the processes",
         {}});
  }
  return ask_to_leave(plan::LeaveRequest::stop, request->name(), request->reason(), reply);
}

grpc::Status TrainingControlService::ask_to_leave(plan::LeaveRequest leave, const std::string& name,
                                                  const std::string& reason, v1::Job* reply) {
  const auto within = within_job(name, name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  if (reason.size() > plan::kReasonBytesMax) {
    return to_status(
        {plan::RefusalKind::invalid_argument,
         "REASON_TOO_LONG",
         "the reason has more than " + std::to_string(plan::kReasonBytesMax) + " bytes",
         {}});
  }
  const bool degraded = is_degraded();
  {
    const std::lock_guard lock(ledger_mutex_);
    if (is_final(state_)) {
      return to_status({plan::RefusalKind::failed_precondition,
                        "JOB_ENDED",
                        "the job has ended: " + v1::Job::State_Name(message_of(state_)),
                        {}});
    }
    if (leave > leave_) {  // asking again, or to drain what stops already, changes nothing
      leave_ = leave;
      state_ = JobState::draining;
      state_reason_ = std::string(leave == plan::LeaveRequest::stop ? "stop" : "drain") +
                      " asked by " + actor_ + (reason.empty() ? "" : ": " + reason);
      tell_job(job_message(degraded));
    }
    *reply = job_message(degraded);
  }
  if (observer_) observer_();
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
