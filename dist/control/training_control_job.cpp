// The RPCs about the job itself: what it is, and asking it to leave.
#include <google/protobuf/util/time_util.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {

using google::protobuf::util::TimeUtil;

v1::Job::State TrainingControlService::state_message(JobState state) {
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
    case JobState::diverged:
      return v1::Job::FAILED;
    case JobState::drained:
    case JobState::stopped:
      return v1::Job::STOPPED;
  }
  FUSEDBUN_ASSERT(false, "every job state has a name in the contract");
}

v1::Job TrainingControlService::job_message(bool degraded) const {
  v1::Job job;
  job.set_name(name_);
  job.set_state(degraded && state_ == JobState::running ? v1::Job::DEGRADED
                                                        : state_message(state_));
  job.set_state_reason(state_reason_);
  job.set_total_steps(job_.total_steps);
  job.set_world_size(job_.world_size);
  *job.mutable_start_time() = TimeUtil::MicrosecondsToTimestamp(start_time_us_);
  job.set_run_id(run_id_);
  job.set_restart_count(job_.restart_count);
  job.set_version(job_.version);
  job.set_backend(job_.backend);
  if (const CheckpointRecord* newest = checkpoints_.newest())
    job.set_last_checkpoint(address_of_checkpoint(newest->facts.job_step));
  job.set_last_checkpoint_error(checkpoints_.last_error());
  const std::lock_guard lock(progress_mutex_);
  job.set_step(last_report_ ? last_report_->job_step + 1 : job_.first_step);
  if (last_report_) {
    job.set_config_revision(last_report_->active_revision);
    job.set_skipped_steps(last_report_->skipped_steps);
    *job.mutable_last_step_time() = TimeUtil::MicrosecondsToTimestamp(last_step_time_us_);
  }
  return job;
}

grpc::Status TrainingControlService::GetJob(Context* context, const v1::GetJobRequest* request,
                                            v1::Job* reply) {
  const auto admitted = admit(Rpc::get_job, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&admitted)) return *refused;
  const bool degraded = is_degraded();
  const std::lock_guard lock(ledger_mutex_);
  *reply = job_message(degraded);
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::DrainJob(Context* context, const v1::DrainJobRequest* request,
                                              v1::Job* reply) {
  const auto admitted = admit(Rpc::drain_job, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&admitted)) return *refused;
  if (const auto refusal = check_request(*request)) return to_status(*refusal);
  if (request->has_deadline()) {
    return to_status({changes::RefusalKind::unimplemented,
                      "NOT_IN_THIS_VERSION",
                      "DrainJob with a deadline is not in this version: leave it out",
                      {}});
  }
  return ask_to_leave({changes::LeaveRequest::drain, std::get<Admitted>(admitted).caller.actor,
                       request->request_id(), request->reason(), request->preempted()},
                      reply);
}

grpc::Status TrainingControlService::StopJob(Context* context, const v1::StopJobRequest* request,
                                             v1::Job* reply) {
  const auto admitted = admit(Rpc::stop_job, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&admitted)) return *refused;
  if (const auto refusal = check_request(*request)) return to_status(*refusal);
  if (request->force()) {
    return to_status(
        {changes::RefusalKind::unimplemented,
         "NOT_IN_THIS_VERSION",
         "StopJob with force is not in this version: leave it out, or end the processes",
         {}});
  }
  return ask_to_leave({changes::LeaveRequest::stop, std::get<Admitted>(admitted).caller.actor,
                       request->request_id(), request->reason()},
                      reply);
}

std::optional<changes::Refusal> TrainingControlService::check_leaving(
    const Leaving& leaving) const {
  changes::ChangeRequest sizes;
  sizes.reason = leaving.reason;
  sizes.request_id = leaving.request_id;
  if (auto refusal = changes::check_size(sizes)) return refusal;
  const auto known = leavings_.find({leaving.actor, leaving.request_id});
  if (leaving.request_id.empty() || known == leavings_.end() || known->second == leaving)
    return std::nullopt;
  return changes::Refusal{changes::RefusalKind::invalid_argument,
                          "REQUEST_ID_REUSED",
                          "request_id was used for another request to leave: give each its own",
                          {}};
}

std::string TrainingControlService::sentence_of(const Leaving& leaving) {
  return std::string(leaving.leave == changes::LeaveRequest::stop ? "stop" : "drain") +
         " asked by " + leaving.actor +
         (leaving.preempted ? ", because the machine is about to be taken away" : "") +
         (leaving.reason.empty() ? "" : ": " + leaving.reason);
}

grpc::Status TrainingControlService::ask_to_leave(const Leaving& leaving, v1::Job* reply) {
  const bool degraded = is_degraded();
  {
    const std::lock_guard lock(ledger_mutex_);
    if (const auto refusal = check_leaving(leaving)) return to_status(*refusal);
    if (const auto refusal = refused_in(Rpc::drain_job, state_)) return to_status(*refusal);
    if (!leaving.request_id.empty() && leavings_.size() < kLeavingsMax)
      leavings_.emplace(std::pair(leaving.actor, leaving.request_id), leaving);
    if (leaving.leave > leave_) {  // asking again, or to drain what stops already, changes nothing
      leave_ = leaving.leave;
      move_to(JobState::draining, sentence_of(leaving), degraded);
    }
    *reply = job_message(degraded);
  }
  if (observer_) observer_();
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
