// The RPCs that ask something of the job as a whole: to leave, to pause, to say what its ranks are doing.
#include <google/protobuf/util/time_util.h>

#include <filesystem>
#include <utility>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/steady_time.h"
#include "fusedbun/dist/control/training_control_service.h"
#include "fusedbun/dist/run_folder/file_names.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::control {
namespace {

using google::protobuf::util::TimeUtil;

/// Between the answer to StopJob with force and the end of the process that answers.
constexpr int64_t kAnswerUs = 300'000;
/// DumpDiagnostics waits so long for the ranks; half of it is left to a caller's deadline of 10 s.
constexpr int64_t kDumpPatienceMs = 5'000;
constexpr int64_t kDeadlineSecondsMax = 7 * 86'400;

changes::Refusal no_heartbeats(const std::string& call) {
  return {changes::RefusalKind::failed_precondition,
          "NO_HEARTBEATS",
          call + " reaches the ranks by their heartbeats, and this job has none",
          {}};
}

}  // namespace

template <class Message>
std::variant<TrainingControlService::JobRequest, grpc::Status>
TrainingControlService::read_job_request(Rpc rpc, const Context& context, const Message& message) {
  const auto authorized = authorize(rpc, context, message.name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  if (const auto refusal = check_request(message)) return to_status(*refusal);
  JobRequest request{.rpc = rpc,
                     .actor = std::get<Authorized>(authorized).caller.actor,
                     .request_id = message.request_id()};
  if constexpr (requires { message.reason(); }) request.reason = message.reason();
  return request;
}

grpc::Status TrainingControlService::DrainJob(Context* context, const v1::DrainJobRequest* request,
                                              v1::Job* reply) {
  auto read = read_job_request(Rpc::drain_job, *context, *request);
  if (const auto* refused = std::get_if<grpc::Status>(&read)) return *refused;
  auto& asked = std::get<JobRequest>(read);
  asked.preempted = request->preempted();
  if (request->has_deadline()) {
    const google::protobuf::Duration& deadline = request->deadline();
    const bool is_in_range = deadline.seconds() >= 0 && deadline.seconds() <= kDeadlineSecondsMax &&
                             deadline.nanos() >= 0 && deadline.nanos() < 1'000'000'000;
    if (!is_in_range) {
      return to_status({changes::RefusalKind::invalid_argument,
                        "BAD_DEADLINE",
                        "deadline is to be from 0 s to a week",
                        {}});
    }
    asked.leave_within_us = TimeUtil::DurationToMicroseconds(deadline);
  }
  return ask(asked, reply);
}

grpc::Status TrainingControlService::StopJob(Context* context, const v1::StopJobRequest* request,
                                             v1::Job* reply) {
  auto read = read_job_request(Rpc::stop_job, *context, *request);
  if (const auto* refused = std::get_if<grpc::Status>(&read)) return *refused;
  auto& asked = std::get<JobRequest>(read);
  if (request->force()) asked.leave_within_us = kAnswerUs;
  return ask(asked, reply);
}

grpc::Status TrainingControlService::PauseJob(Context* context, const v1::PauseJobRequest* request,
                                              v1::Job* reply) {
  const auto read = read_job_request(Rpc::pause_job, *context, *request);
  if (const auto* refused = std::get_if<grpc::Status>(&read)) return *refused;
  return ask(std::get<JobRequest>(read), reply);
}

grpc::Status TrainingControlService::ResumeJob(Context* context,
                                               const v1::ResumeJobRequest* request,
                                               v1::Job* reply) {
  const auto read = read_job_request(Rpc::resume_job, *context, *request);
  if (const auto* refused = std::get_if<grpc::Status>(&read)) return *refused;
  return ask(std::get<JobRequest>(read), reply);
}

std::optional<changes::Refusal> TrainingControlService::check_job_request(
    const JobRequest& request) const {
  changes::ChangeRequest sizes;
  sizes.reason = request.reason;
  sizes.request_id = request.request_id;
  if (auto refusal = changes::check_size(sizes)) return refusal;
  const auto known = job_requests_.find({request.actor, request.request_id});
  if (request.request_id.empty() || known == job_requests_.end() || known->second == request)
    return std::nullopt;
  return changes::Refusal{changes::RefusalKind::invalid_argument,
                          "REQUEST_ID_REUSED",
                          "request_id was used for another request of the job: give each its own",
                          {}};
}

std::string TrainingControlService::sentence_of(const JobRequest& request) {
  const char* const what = request.rpc == Rpc::stop_job    ? "stop"
                           : request.rpc == Rpc::drain_job ? "drain"
                                                           : "pause";
  return std::string(what) + " asked by " + request.actor +
         (request.preempted ? ", because the machine is about to be taken away" : "") +
         (request.reason.empty() ? "" : ": " + request.reason);
}

grpc::Status TrainingControlService::ask(const JobRequest& request, v1::Job* reply) {
  const bool degraded = is_degraded();
  const bool reaches_ranks = orders() != nullptr;
  {
    const std::lock_guard lock(ledger_mutex_);
    if (const auto refusal = check_job_request(request)) return to_status(*refusal);
    if (const auto refusal = refused_in(request.rpc, state_)) return to_status(*refusal);
    if (request.leave_within_us && !reaches_ranks) {
      const bool stops = request.rpc == Rpc::stop_job;
      return to_status(no_heartbeats(stops ? "StopJob with force" : "DrainJob with a deadline"));
    }
    // A repeated PauseJob must not pause the job again after ResumeJob.
    const std::pair id(request.actor, request.request_id);
    if (request.request_id.empty() || !job_requests_.contains(id)) obey(request, degraded);
    if (!request.request_id.empty() && job_requests_.size() < kJobRequestsMax)
      job_requests_.emplace(id, request);
    *reply = job_message(degraded);
  }
  if (observer_) observer_();
  return grpc::Status::OK;
}

void TrainingControlService::obey(const JobRequest& request, bool degraded) {
  switch (request.rpc) {
    case Rpc::pause_job:
      if (pause_asked_) return;
      pause_asked_ = true;
      state_reason_ = sentence_of(request);
      return tell_job(job_message(degraded));  // PAUSED once the ranks are held
    case Rpc::resume_job:
      if (!std::exchange(pause_asked_, false)) return;
      state_reason_.clear();
      return move_to(JobState::running, {}, degraded);
    default:
      break;
  }
  const bool stops = request.rpc == Rpc::stop_job;
  const auto leave = stops ? changes::LeaveRequest::stop : changes::LeaveRequest::drain;
  const bool by_force = stops && request.leave_within_us;  // then the ranks are not asked as well
  if (by_force ||
      leave > leave_) {  // asking again, or to drain what stops already, changes nothing
    if (!by_force) leave_ = leave;
    move_to(JobState::draining, sentence_of(request), degraded);
  }
  if (!request.leave_within_us) return;
  const int64_t at_us = steady_us() + *request.leave_within_us;
  const bool is_first = !forced_exit_ || stops > forced_exit_->stops ||
                        (stops == forced_exit_->stops && at_us < forced_exit_->at_us);
  if (is_first) {  // to stop wins over to drain, else the earlier
    forced_exit_ = ForcedExit{
        .at_us = at_us,
        .stops = stops,
        .reason = sentence_of(request) + (stops ? "; by force, without saving"
                                                : "; its deadline passed before it had saved")};
  }
}

void TrainingControlService::leave_if_overdue() {
  ForcedExit exit;
  {
    const std::lock_guard lock(ledger_mutex_);
    if (!forced_exit_ || steady_us() < forced_exit_->at_us) return;
    exit = *std::exchange(forced_exit_, std::nullopt);
    exit.stops |= leave_ == changes::LeaveRequest::stop;  // asked after a drain with this deadline
    if (is_final(state_)) return;  // it has left, and only waits for its ranks
  }
  set_state(exit.stops ? JobState::stopped : JobState::drained, exit.reason);
  const auto code = exit.stops ? ExitCode::done : ExitCode::left_early;
  if (plan::RankOrders* const ranks = orders())
    ranks->exit_all(static_cast<int>(code), exit.reason);
}

// ---- what the ranks are doing --------------------------------------------------------------------

grpc::Status TrainingControlService::DumpDiagnostics(Context* context,
                                                     const v1::DumpDiagnosticsRequest* request,
                                                     v1::Diagnostics* reply) {
  const auto authorized = authorize(Rpc::dump_diagnostics, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  if (const auto refusal = check_request(*request)) return to_status(*refusal);
  plan::RankOrders* const ranks = orders();
  if (ranks == nullptr) return to_status(no_heartbeats("DumpDiagnostics"));
  std::string now = run_folder::utc_text_us(run_folder::utc_now_us());
  std::erase(now, ':');  // not in names of files
  const std::filesystem::path folder =
      std::filesystem::absolute(run_dir_) / run_folder::kDiagnosticsName / now;
  reply->set_directory(folder.string());
  const auto answers = ranks->dump(folder.string(), kDumpPatienceMs);
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    if (answers[rank].has_answered && answers[rank].problem.empty()) {
      reply->add_files(run_folder::diagnostics_name(static_cast<int>(rank)));
    } else {
      reply->add_missing_ranks(static_cast<int32_t>(rank));
    }
    if (!answers[rank].problem.empty()) warn(answers[rank].problem);
  }
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
