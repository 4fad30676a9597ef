// The RPCs about hyperparameters and changes.
#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <charconv>
#include <chrono>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/control/change_messages.h"
#include "fusedbun/dist/control/error_details.h"
#include "fusedbun/dist/control/page_request.h"
#include "fusedbun/dist/control/patience.h"
#include "fusedbun/dist/control/resource_name.h"
#include "fusedbun/dist/control/training_control_service.h"

namespace fusedbun::control {
namespace {

/// A page ends at this many bytes: clients take 4 MiB unless they say otherwise.
constexpr size_t kPageBytesMax = 1 << 20;

using google::protobuf::util::TimeUtil;

v1::Change::State message_of(changes::ChangeState state) {
  switch (state) {
    case changes::ChangeState::scheduled:
      return v1::Change::SCHEDULED;
    case changes::ChangeState::applied:
      return v1::Change::APPLIED;
    case changes::ChangeState::cancelled:
      return v1::Change::CANCELLED;
    case changes::ChangeState::rejected:
      return v1::Change::REJECTED;
  }
  FUSEDBUN_ASSERT(false, "every change state has a name in the contract");
}

/// Which changes are wanted: "state=NAME", "revision>N", or both with " AND " between them.
struct ChangeFilter {
  std::optional<v1::Change::State> state;
  int64_t after = 0;  ///< this revision
};
std::variant<ChangeFilter, changes::Refusal> read_filter(const std::string& text) {
  constexpr std::string_view kAnd = " AND ";
  constexpr std::string_view kState = "state=";
  constexpr std::string_view kRevision = "revision>";
  ChangeFilter filter;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find(kAnd), rest.size());
    const std::string_view part = rest.substr(0, end);
    rest.remove_prefix(std::min(end + kAnd.size(), rest.size()));
    v1::Change::State state{};
    if (part.starts_with(kState) &&
        v1::Change::State_Parse(std::string(part.substr(kState.size())), &state)) {
      filter.state = state;
      continue;
    }
    const char* last = part.data() + part.size();
    const bool is_revision = part.starts_with(kRevision);
    const auto read = is_revision
                          ? std::from_chars(part.data() + kRevision.size(), last, filter.after)
                          : std::from_chars_result{part.data(), std::errc::invalid_argument};
    if (read.ec != std::errc{} || read.ptr != last || filter.after < 0) {
      return changes::invalid(
          "BAD_FILTER",
          "filter must be empty, state=SCHEDULED, APPLIED, CANCELLED or REJECTED, "
          "revision>N, or both with AND between them");
    }
  }
  return filter;
}

int64_t revision_of(const changes::ChangeBatch::Answer& answer) {
  if (const auto* repeated = std::get_if<changes::ChangeLedger::Replay>(&answer))
    return repeated->revision;
  return std::get<changes::ChangeBatch::Accepted>(answer).revision;
}

}  // namespace

std::string TrainingControlService::address_of_change(int64_t revision) const {
  return name_ + "/changes/" + std::to_string(revision);
}

/// Adds what the schedule gave in the last finished step, and what follows from it.
void TrainingControlService::fill_schedule(const changes::Settings& settings,
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
    Context* context, const v1::GetHyperparametersRequest* request, v1::Hyperparameters* reply) {
  const auto authorized = authorize(Rpc::get_hyperparameters, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  const int64_t next_step = commit_.next_step();
  const changes::Settings settings = ledger_.settings_at(next_step);
  *reply = to_message(settings, ledger_.groups());
  fill_schedule(settings, *reply);
  reply->set_name(name_ + "/hyperparameters");
  reply->set_etag(ledger_.etag());
  reply->set_revision(ledger_.newest_revision());
  reply->set_effective_step(next_step);
  reply->set_chain_hash(hash_bytes(ledger_.chain_hash()));
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::ListHyperparameterSpecs(
    Context* context, const v1::ListHyperparameterSpecsRequest* request,
    v1::ListHyperparameterSpecsResponse* reply) {
  const auto authorized = authorize(Rpc::list_hyperparameter_specs, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  for (changes::FieldSpec spec : changes::field_specs()) {
    if (spec.field == changes::Field::max_grad_norm && !job_.capabilities.clips_gradients)
      spec.max = 0;
    *reply->add_specs() = to_message(spec);
  }
  return grpc::Status::OK;
}

v1::Change TrainingControlService::change_message(const changes::AcceptedChange& change) const {
  v1::Change message = to_message(change, ledger_.groups());
  message.set_name(address_of_change(change.revision));
  message.set_state(message_of(ledger_.state_of(change.revision)));
  message.set_cancelled_by(ledger_.cancelled_by(change.revision));
  if (message.state() == v1::Change::REJECTED)
    message.set_error("the run ended before step " + std::to_string(change.effective_step));
  return message;
}

int64_t TrainingControlService::observed_revision() {
  const std::lock_guard lock(ledger_mutex_);
  observe_progress();
  return ledger_.newest_revision();
}

v1::Change::State TrainingControlService::state_of_change(int64_t revision) const {
  const std::lock_guard lock(ledger_mutex_);
  return message_of(ledger_.state_of(revision));
}

v1::Change TrainingControlService::find_change(int64_t revision) {
  {
    const std::lock_guard lock(ledger_mutex_);
    if (const changes::AcceptedChange* held = ledger_.find(revision)) return change_message(*held);
  }
  v1::Change change;
  if (!change.ParseFromString(history_->read(revision)))
    throw IoError("the history of changes was damaged");
  return change;
}

grpc::Status TrainingControlService::reply_with(int64_t revision, v1::Change* reply) {
  try {
    *reply = find_change(revision);
    return grpc::Status::OK;
  } catch (const IoError& error) {
    return to_status({changes::RefusalKind::unavailable, "HISTORY_READ_FAILED", error.what(), {}});
  }
}

changes::ChangeBatch::Answer TrainingControlService::commit(changes::ChangeRequest request,
                                                            const Context& context) {
  return commit_.commit(std::move(request),
                        {.until = changes::ChangeCommitter::Clock::now() + patience_of(context),
                         .gone = [&] { return context.IsCancelled(); }});
}

grpc::Status TrainingControlService::CreateChange(Context* context,
                                                  const v1::CreateChangeRequest* request,
                                                  v1::Change* reply) {
  const auto authorized = authorize(Rpc::create_change, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto read = read_request(*request, std::get<Authorized>(authorized).caller.actor);
  if (const auto* refusal = std::get_if<changes::Refusal>(&read)) return to_status(*refusal);
  const auto& change = std::get<changes::ChangeRequest>(read);
  if (request->validate_only()) return dry_run(change, reply);
  if (const auto refusal = check_rate(change)) return to_status(*refusal);

  const changes::ChangeBatch::Answer answer = commit(change, *context);
  if (const auto* refusal = std::get_if<changes::Refusal>(&answer)) return to_status(*refusal);
  grpc::Status status = reply_with(revision_of(answer), reply);
  if (!status.ok()) return status;
  reply->clear_error();
  reply->clear_cancelled_by();
  reply->set_state(v1::Change::SCHEDULED);  // what the first answer says, every repeated one says
  return status;
}

grpc::Status TrainingControlService::dry_run(const changes::ChangeRequest& request,
                                             v1::Change* reply) {
  std::unique_lock lock(ledger_mutex_);
  const auto verdict = commit_.dry_run(request);
  if (const auto* refusal = std::get_if<changes::Refusal>(&verdict)) return to_status(*refusal);
  if (const auto* repeated = std::get_if<changes::ChangeLedger::Replay>(&verdict)) {
    lock.unlock();
    grpc::Status status = reply_with(repeated->revision, reply);
    reply->clear_error();
    reply->clear_state();
    return status;
  }
  *reply = to_message(std::get<changes::AcceptedChange>(verdict), ledger_.groups());
  reply->clear_revision();  // none was used
  reply->clear_chain_hash();
  reply->mutable_resulting()->clear_revision();
  return grpc::Status::OK;
}

grpc::Status TrainingControlService::CancelChange(Context* context,
                                                  const v1::CancelChangeRequest* request,
                                                  v1::Change* reply) {
  const auto authorized = authorize(Rpc::cancel_change, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto& [caller, within] = std::get<Authorized>(authorized);
  if (const auto refusal = check_request(*request)) return to_status(*refusal);
  const auto revision = change_revision(within, newest_revision());
  if (const auto* refusal = std::get_if<changes::Refusal>(&revision)) return to_status(*refusal);
  changes::ChangeRequest cancellation;
  cancellation.cancels = std::get<int64_t>(revision);
  cancellation.reason = request->reason();
  cancellation.actor = caller.actor;
  cancellation.request_id = request->request_id();
  cancellation.create_time_us = TimeUtil::TimestampToMicroseconds(TimeUtil::GetCurrentTime());
  if (const auto refusal = check_rate(cancellation)) return to_status(*refusal);
  const changes::ChangeBatch::Answer answer = commit(cancellation, *context);
  if (const auto* refusal = std::get_if<changes::Refusal>(&answer)) return to_status(*refusal);
  return reply_with(*cancellation.cancels, reply);
}

grpc::Status TrainingControlService::GetChange(Context* context,
                                               const v1::GetChangeRequest* request,
                                               v1::Change* reply) {
  const auto authorized = authorize(Rpc::get_change, *context, request->name());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto revision =
      change_revision(std::get<Authorized>(authorized).within, observed_revision());
  if (const auto* refusal = std::get_if<changes::Refusal>(&revision)) return to_status(*refusal);
  return reply_with(std::get<int64_t>(revision), reply);
}

grpc::Status TrainingControlService::ListChanges(Context* context,
                                                 const v1::ListChangesRequest* request,
                                                 v1::ListChangesResponse* reply) {
  const auto authorized = authorize(Rpc::list_changes, *context, request->parent());
  if (const auto* refused = std::get_if<grpc::Status>(&authorized)) return *refused;
  const auto filter = read_filter(request->filter());
  if (const auto* refusal = std::get_if<changes::Refusal>(&filter)) return to_status(*refusal);
  const auto read = read_page(request->page_size(), request->page_token(), 1);
  if (const auto* refusal = std::get_if<changes::Refusal>(&read)) return to_status(*refusal);
  const auto& page = std::get<PageRequest>(read);
  const auto& [wanted, after] = std::get<ChangeFilter>(filter);

  // The training loop may have its turn between any two.
  const auto until = std::chrono::steady_clock::now() + patience_of(*context);
  const int64_t newest = observed_revision();
  size_t bytes = 0;
  for (int64_t revision = std::max(page.first, after + 1); revision <= newest; ++revision) {
    if (context->IsCancelled()) return grpc::Status::CANCELLED;
    if (wanted && *wanted != state_of_change(revision)) continue;
    const bool is_full = reply->changes_size() == page.size || bytes >= kPageBytesMax ||
                         std::chrono::steady_clock::now() >= until;
    if (is_full) {
      reply->set_next_page_token(std::to_string(revision));
      break;
    }
    const grpc::Status status = reply_with(revision, reply->add_changes());
    if (!status.ok()) return status;
    const v1::Change& change = *reply->changes().rbegin();
    const bool has_moved_on = wanted && change.state() != *wanted;
    bytes += change.ByteSizeLong();
    if (has_moved_on) reply->mutable_changes()->RemoveLast();
  }
  return grpc::Status::OK;
}

}  // namespace fusedbun::control
