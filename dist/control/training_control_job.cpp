// What the job is, for GetJob and for every answer and event that tells of it.
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
    case JobState::paused:
      return v1::Job::PAUSED;
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
  const auto authorized = authorize(Rpc::get_job, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const bool degraded = is_degraded();
  const std::lock_guard lock(ledger_mutex_);
  *reply = job_message(degraded);
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
