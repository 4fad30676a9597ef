// The RPCs about hyperparameters and changes.
#include <algorithm>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/page_request.h"
#include "fusedbun/dist/control/resource_name.h"
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {
namespace {

v1::Change::State message_of(plan::ChangeState state) {
  switch (state) {
    case plan::ChangeState::scheduled:
      return v1::Change::SCHEDULED;
    case plan::ChangeState::applied:
      return v1::Change::APPLIED;
    case plan::ChangeState::rejected:
      return v1::Change::REJECTED;
  }
  FUSEDBUN_ASSERT(false, "every change state has a name in the contract");
}

plan::Refusal invalid(std::string reason, std::string message) {
  return {plan::RefusalKind::invalid_argument, std::move(reason), std::move(message), {}};
}

/// The state asked for by "state=NAME"; STATE_UNSPECIFIED for no filter.
std::variant<v1::Change::State, plan::Refusal> read_filter(const std::string& filter) {
  constexpr std::string_view kState = "state=";
  v1::Change::State state = v1::Change::STATE_UNSPECIFIED;
  if (filter.empty()) return state;
  if (filter.starts_with(kState) && v1::Change::State_Parse(filter.substr(kState.size()), &state))
    return state;
  return invalid("BAD_FILTER",
                 "filter must be empty or state=SCHEDULED, state=APPLIED, state=REJECTED");
}

}  // namespace

std::string TrainingControlService::address_of_change(int64_t revision) const {
  return name_ + "/changes/" + std::to_string(revision);
}

/// Adds what the schedule gave in the last finished step, and what follows from it.
void TrainingControlService::fill_schedule(const plan::Settings& settings,
                                           v1::Hyperparameters& message) const {
  const std::lock_guard lock(progress_mutex_);
  for (int i = 0; i < message.groups_size(); ++i) {
    v1::ParamGroup& group = *message.mutable_groups(i);
    const bool reported =
        last_report_ && static_cast<size_t>(i) < last_report_->scheduled_lr.size();
    const double scheduled = reported ? last_report_->scheduled_lr[i] : settings.groups[i].lr;
    group.set_scheduled_learning_rate(scheduled);
    group.set_effective_learning_rate(settings.lr_pins[i].value_or(scheduled * settings.lr_scale));
  }
}

grpc::Status TrainingControlService::GetHyperparameters(
    Context*, const v1::GetHyperparametersRequest* request, v1::Hyperparameters* reply) {
  const auto within = within_job(request->name(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  const plan::Settings settings = ledger_.settings_at(ledger_.earliest_step());
  *reply = to_message(settings, ledger_.groups());
  fill_schedule(settings, *reply);
  reply->set_name(name_ + "/hyperparameters");
  reply->set_etag(ledger_.etag());
  reply->set_revision(ledger_.newest_revision());
  reply->set_effective_step(ledger_.earliest_step());
  reply->set_chain_hash(hash_bytes(ledger_.chain_hash()));
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::ListHyperparameterSpecs(
    Context*, const v1::ListHyperparameterSpecsRequest* request,
    v1::ListHyperparameterSpecsResponse* reply) {
  const auto within = within_job(request->parent(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  for (const plan::FieldSpec& spec : plan::field_specs()) *reply->add_specs() = to_message(spec);
  return grpc::Status::OK;
}

std::optional<plan::Refusal> TrainingControlService::refused_by_state() const {
  switch (state_) {
    case JobState::running:
      return std::nullopt;
    case JobState::starting:
      return plan::Refusal{plan::RefusalKind::unavailable,
                           "STARTING",
                           "the job is starting and takes no changes yet: try again",
                           {}};
    case JobState::draining:
      return plan::Refusal{plan::RefusalKind::unavailable,
                           "DRAINING",
                           "the job is about to leave and takes no more changes",
                           {}};
    case JobState::succeeded:
    case JobState::failed:
    case JobState::stopped:
      return plan::Refusal{
          plan::RefusalKind::failed_precondition, "JOB_ENDED", "the job has ended", {}};
  }
  FUSEDBUN_ASSERT(false, "every job state says whether changes are taken");
}

v1::Change TrainingControlService::change_message(const plan::AcceptedChange& change) const {
  v1::Change message = to_message(change, ledger_.groups());
  message.set_name(address_of_change(change.revision));
  message.set_state(message_of(ledger_.state_of(change)));
  if (message.state() == v1::Change::REJECTED)
    message.set_error("the run ended before step " + std::to_string(change.effective_step));
  return message;
}

grpc::Status TrainingControlService::answer_repeated(int64_t revision, bool validate_only,
                                                     v1::Change* reply) const {
  *reply = change_message(ledger_.change(revision));
  reply->clear_error();
  reply->set_state(validate_only ? v1::Change::STATE_UNSPECIFIED
                                 : v1::Change::SCHEDULED);  // as the first answer said
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::CreateChange(Context*, const v1::CreateChangeRequest* request,
                                                  v1::Change* reply) {
  const auto within = within_job(request->parent(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  const auto read = read_request(*request, actor_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&read)) return to_status(*refusal);

  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  auto verdict = ledger_.propose(std::get<plan::ChangeRequest>(read));
  if (const auto* repeated = std::get_if<plan::ChangeLedger::Replay>(&verdict)) {
    return answer_repeated(repeated->revision, request->validate_only(), reply);
  }
  if (const auto refusal = refused_by_state()) return to_status(*refusal);
  if (const auto* refusal = std::get_if<plan::Refusal>(&verdict)) return to_status(*refusal);

  auto& change = std::get<plan::AcceptedChange>(verdict);
  if (request->validate_only()) {
    *reply = to_message(change, ledger_.groups());
    reply->clear_revision();  // none was used
    reply->clear_chain_hash();
    reply->mutable_resulting()->clear_revision();
    return grpc::Status::OK;
  }
  try {
    log_.append(change, ledger_.groups());
  } catch (const IoError& error) {
    return to_status(
        {plan::RefusalKind::unavailable,
         "LOG_WRITE_FAILED",
         std::string("the change was not taken, because it could not be logged: ") + error.what(),
         {}});
  }
  ledger_.commit(std::move(change));
  *reply = change_message(ledger_.change(ledger_.newest_revision()));
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::GetChange(Context*, const v1::GetChangeRequest* request,
                                               v1::Change* reply) {
  const auto within = within_job(request->name(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  const auto revision =
      change_revision(std::get<std::string_view>(within), ledger_.newest_revision());
  if (const auto* refusal = std::get_if<plan::Refusal>(&revision)) return to_status(*refusal);
  *reply = change_message(ledger_.change(std::get<int64_t>(revision)));
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::ListChanges(Context*, const v1::ListChangesRequest* request,
                                                 v1::ListChangesResponse* reply) {
  const auto within = within_job(request->parent(), name_);
  if (const auto* refusal = std::get_if<plan::Refusal>(&within)) return to_status(*refusal);
  const auto filter = read_filter(request->filter());
  if (const auto* refusal = std::get_if<plan::Refusal>(&filter)) return to_status(*refusal);
  const auto read = read_page(request->page_size(), request->page_token(), 1);
  if (const auto* refusal = std::get_if<plan::Refusal>(&read)) return to_status(*refusal);
  const auto& page = std::get<PageRequest>(read);
  const auto wanted = std::get<v1::Change::State>(filter);

  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  for (int64_t revision = page.first; revision <= ledger_.newest_revision(); ++revision) {
    const plan::AcceptedChange& change = ledger_.change(revision);
    if (wanted != v1::Change::STATE_UNSPECIFIED && wanted != message_of(ledger_.state_of(change)))
      continue;
    if (reply->changes_size() == page.size) {
      reply->set_next_page_token(std::to_string(revision));
      break;
    }
    *reply->add_changes() = change_message(change);
  }
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
