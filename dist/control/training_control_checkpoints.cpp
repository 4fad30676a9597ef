// The RPCs about checkpoints. Who saves is the training loop; what is known of it here is CheckpointRecords.
#include <google/protobuf/util/time_util.h>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/page_request.h"
#include "fusedbun/dist/control/resource_name.h"
#include "fusedbun/dist/control/training_control_service.h"
#include "fusedbun/dist/run_folder/utc_time.h"

namespace fusedbun::control {
namespace {

using google::protobuf::util::TimeUtil;

v1::Checkpoint::State message_of(CheckpointRecord::State state) {
  switch (state) {
    case CheckpointRecord::State::creating:
      return v1::Checkpoint::CREATING;
    case CheckpointRecord::State::active:
      return v1::Checkpoint::ACTIVE;
    case CheckpointRecord::State::failed:
      return v1::Checkpoint::FAILED;
    case CheckpointRecord::State::deleted:
      return v1::Checkpoint::DELETED;
  }
  FUSEDBUN_ASSERT(false, "every state of a checkpoint has a name in the contract");
}

}  // namespace

std::string TrainingControlService::address_of_checkpoint(int64_t job_step) const {
  return name_ + "/checkpoints/" + std::to_string(job_step);
}

v1::Checkpoint TrainingControlService::checkpoint_message(const CheckpointRecord& record) const {
  v1::Checkpoint checkpoint;
  checkpoint.set_name(address_of_checkpoint(record.facts.job_step));
  checkpoint.set_state(message_of(record.state));
  checkpoint.set_step(record.facts.job_step);
  checkpoint.set_bytes(record.facts.bytes);
  checkpoint.set_world_size(record.facts.world_size);
  checkpoint.set_digest(record.facts.digest);
  if (!record.facts.folder.empty()) checkpoint.set_uri("file://" + record.facts.folder.string());
  checkpoint.set_error(record.error);
  checkpoint.set_error_reason(record.error_reason);
  *checkpoint.mutable_create_time() = TimeUtil::MicrosecondsToTimestamp(record.create_us);
  checkpoint.set_actor(record.actor);
  checkpoint.set_reason(record.reason);
  return checkpoint;
}

void TrainingControlService::tell_checkpoints(const CheckpointRecords::Turned& turned) {
  for (const int64_t step : turned) {
    const CheckpointRecord* record = checkpoints_.find(step);
    if (record == nullptr) continue;
    v1::JobEvent event;
    *event.mutable_checkpoint() = checkpoint_message(*record);
    events_.add(std::move(event));
  }
}

// ---- told by who saves --------------------------------------------------------------------------

void TrainingControlService::offer_checkpoints(
    const std::vector<ControlServer::FoundCheckpoint>& found) {
  const std::lock_guard lock(ledger_mutex_);
  offers_checkpoints_ = true;
  for (const ControlServer::FoundCheckpoint& each : found)
    checkpoints_.found(each.facts, each.damage);
}

void TrainingControlService::save_started(int64_t job_step) {
  const std::lock_guard lock(ledger_mutex_);
  tell_checkpoints(checkpoints_.started(job_step, run_folder::utc_now_us()));
  awaits_checkpoint_ = checkpoints_.is_requested();
}

void TrainingControlService::save_refused(int64_t job_step) {
  const std::lock_guard lock(ledger_mutex_);
  tell_checkpoints(checkpoints_.refused(job_step));
  awaits_checkpoint_ = checkpoints_.is_requested();
}

void TrainingControlService::checkpoint_durable(const CheckpointFacts& facts) {
  const std::lock_guard lock(ledger_mutex_);
  tell_checkpoints(checkpoints_.durable(facts, run_folder::utc_now_us()));
}

void TrainingControlService::save_failed(int64_t job_step, std::string_view problem) {
  const std::lock_guard lock(ledger_mutex_);
  tell_checkpoints(checkpoints_.failed(job_step, problem, run_folder::utc_now_us()));
}

void TrainingControlService::checkpoint_deleted(int64_t job_step) {
  const std::lock_guard lock(ledger_mutex_);
  tell_checkpoints(checkpoints_.deleted(job_step));
}

// ---- asked by clients ---------------------------------------------------------------------------

CheckpointRecords::Answer TrainingControlService::checkpoint_answer(
    const CheckpointRecords::Request& request) const {
  changes::ChangeRequest sizes;
  sizes.reason = request.reason;
  sizes.request_id = request.request_id;
  if (auto refusal = changes::check_size(sizes)) return *std::move(refusal);
  if (auto refusal = refused_in(Rpc::create_checkpoint, state_)) return *std::move(refusal);
  if (!offers_checkpoints_) {
    return changes::Refusal{
        changes::RefusalKind::failed_precondition,
        "NO_CHECKPOINTS",
        "this job saves no checkpoints: fusedbun train was told "
        "--no-checkpoints, or its program has called neither Job::resume nor Job::save yet",
        {}};
  }
  // The header of the current step tells the ranks, who read it in the next one: as with a change, two steps from now.
  auto answer = checkpoints_.answer(ledger_.earliest_step());
  const auto* step = std::get_if<int64_t>(&answer);
  if (step != nullptr && job_.total_steps > 0 && *step > job_.total_steps) {
    return changes::Refusal{changes::RefusalKind::out_of_range,
                            "STEP_AFTER_END",
                            "the run ends before the ranks can agree on another checkpoint",
                            {}};
  }
  return answer;
}

grpc::Status TrainingControlService::CreateCheckpoint(Context* context,
                                                      const v1::CreateCheckpointRequest* request,
                                                      v1::Checkpoint* reply) {
  const auto authorized = authorize(Rpc::create_checkpoint, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  if (const auto refusal = check_request(*request)) return to_status(*refusal);
  const CheckpointRecords::Request asked{std::get<Authorized>(authorized).caller.actor,
                                         request->request_id(), request->reason()};
  const std::lock_guard lock(ledger_mutex_);
  const auto repeated = checkpoints_.repeated(asked);
  const auto answer = repeated ? *repeated : checkpoint_answer(asked);
  if (const auto* refusal = std::get_if<changes::Refusal>(&answer)) return to_status(*refusal);
  const int64_t step = std::get<int64_t>(answer);
  if (request->validate_only()) {
    CheckpointRecord record;
    record.facts.job_step = step;
    *reply = checkpoint_message(record);
    reply->set_state(v1::Checkpoint::STATE_UNSPECIFIED);
    reply->clear_create_time();
    return grpc::Status::OK;
  }
  if (!repeated) {
    awaits_checkpoint_ = true;
    tell_checkpoints(checkpoints_.accept(asked, step, run_folder::utc_now_us()));
  }
  const CheckpointRecord* record = checkpoints_.find(step);
  if (record == nullptr) {  // the same request, made long ago
    return to_status(unknown_checkpoint("checkpoints/" + std::to_string(step)));
  }
  *reply = checkpoint_message(*record);
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::GetCheckpoint(Context* context,
                                                   const v1::GetCheckpointRequest* request,
                                                   v1::Checkpoint* reply) {
  const auto authorized = authorize(Rpc::get_checkpoint, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const std::string& within = std::get<Authorized>(authorized).within;
  const auto step = checkpoint_step(within);
  const std::lock_guard lock(ledger_mutex_);
  const CheckpointRecord* record = step ? checkpoints_.find(*step) : nullptr;
  if (record == nullptr) return to_status(unknown_checkpoint(within));
  *reply = checkpoint_message(*record);
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::ListCheckpoints(Context* context,
                                                     const v1::ListCheckpointsRequest* request,
                                                     v1::ListCheckpointsResponse* reply) {
  const auto authorized = authorize(Rpc::list_checkpoints, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto read = read_page(request->page_size(), request->page_token(), 0);
  if (const auto* refusal = std::get_if<changes::Refusal>(&read)) return to_status(*refusal);
  const auto& page = std::get<PageRequest>(read);
  const std::lock_guard lock(ledger_mutex_);
  const auto count = static_cast<size_t>(page.size);
  for (const CheckpointRecord* record : checkpoints_.list(page.first, count + 1)) {
    if (static_cast<size_t>(reply->checkpoints_size()) == count) {
      reply->set_next_page_token(std::to_string(record->facts.job_step));
      break;
    }
    *reply->add_checkpoints() = checkpoint_message(*record);
  }
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
