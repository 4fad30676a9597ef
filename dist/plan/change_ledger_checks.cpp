// The checks that a request goes through before it is a change.
#include <algorithm>

#include "fusedbun/dist/plan/change_ledger.h"
#include "fusedbun/dist/plan/hexadecimal.h"

namespace fusedbun::plan {
namespace {

bool same_body(const ChangeRequest& a, const ChangeRequest& b) {
  return a.patches == b.patches && a.apply_at_step == b.apply_at_step && a.cancels == b.cancels &&
         a.reason == b.reason;
}

}  // namespace

std::string ChangeLedger::etag_of(int64_t revision, uint64_t chain_hash) {
  return "\"" + std::to_string(revision) + "-" + hexadecimal(chain_hash) + "\"";
}

std::optional<ChangeLedger::Verdict> ChangeLedger::find_repeated(const ChangeRequest& request,
                                                                 Staged staged) const {
  if (request.request_id.empty()) return std::nullopt;
  const ChangeRequest* first = nullptr;
  int64_t revision = 0;
  const auto found = revision_of_request_.find({request.actor, request.request_id});
  if (found != revision_of_request_.end()) {
    revision = found->second;
    first = &change(revision).request;
  }
  for (const AcceptedChange& change : staged) {
    if (change.request.actor != request.actor || change.request.request_id != request.request_id)
      continue;
    revision = change.revision;
    first = &change.request;
  }
  if (first == nullptr) return std::nullopt;
  if (same_body(*first, request)) return Replay{revision};
  return Refusal{RefusalKind::invalid_argument,
                 "REQUEST_ID_REUSED",
                 "request_id was used for another change, revision " + std::to_string(revision) +
                     ": give each change its own",
                 {{"revision", std::to_string(revision)}}};
}

std::optional<Refusal> ChangeLedger::check_etag(const ChangeRequest& request, Staged staged) const {
  if (request.etag == "*") return std::nullopt;
  if (request.etag.empty()) {
    return Refusal{RefusalKind::invalid_argument,
                   "ETAG_REQUIRED",
                   "the change names no etag: send that of GetHyperparameters, or \"*\" for "
                   "whatever holds",
                   {}};
  }
  const std::string present =
      staged.empty() ? etag() : etag_of(staged.back().revision, staged.back().chain_hash);
  if (request.etag == present) return std::nullopt;
  return Refusal{RefusalKind::aborted,
                 "ETAG_MISMATCH",
                 "the hyperparameters have changed since they were read: read them again",
                 {{"etag", present}}};
}

std::optional<Refusal> ChangeLedger::check_step(const ChangeRequest& request, Staged staged) const {
  if (request.apply_at_step && *request.apply_at_step < earliest_step()) {
    return Refusal{RefusalKind::out_of_range,
                   "STEP_TOO_NEAR",
                   "apply_at_step " + std::to_string(*request.apply_at_step) +
                       " cannot be reached: the job is in step " + std::to_string(current_step_) +
                       ", so a change can be used from step " + std::to_string(earliest_step()) +
                       " on",
                   {{"earliest_step", std::to_string(earliest_step())}}};
  }
  const auto made_here = std::ranges::count_if(open_, [&](int64_t r) { return r > restored_; });
  const size_t pending = static_cast<size_t>(made_here) + staged.size();
  if (pending >= kPendingMax) {
    return Refusal{RefusalKind::resource_exhausted,
                   "TOO_MANY_PENDING",
                   std::to_string(pending) +
                       " changes wait for their step: send more when some have been applied",
                   {}};
  }
  return std::nullopt;
}

std::optional<Refusal> ChangeLedger::check_cancel(const ChangeRequest& request,
                                                  Staged staged) const {
  const int64_t revision = *request.cancels;
  const auto not_scheduled = [&](const std::string& what) {
    return Refusal{RefusalKind::failed_precondition,
                   "NOT_SCHEDULED",
                   "change " + std::to_string(revision) + " " + what,
                   {{"revision", std::to_string(revision)}}};
  };
  if (revision < 1 || revision > newest_revision()) {
    return Refusal{RefusalKind::not_found,
                   "UNKNOWN_CHANGE",
                   "there is no change " + std::to_string(revision),
                   {}};
  }
  const AcceptedChange& cancelled = change(revision);
  if (cancelled.request.cancels)
    return not_scheduled("is a cancellation, and cannot be taken back");
  const bool is_staged = std::ranges::any_of(
      staged, [&](const AcceptedChange& other) { return other.request.cancels == revision; });
  if (is_staged || state_of(cancelled) == ChangeState::cancelled)
    return not_scheduled("was cancelled before");
  if (state_of(cancelled) != ChangeState::scheduled) return not_scheduled("has been used");
  return std::nullopt;
}

std::optional<Refusal> ChangeLedger::check_cancel_step(const AcceptedChange& cancelled) const {
  if (is_reachable(cancelled)) return std::nullopt;
  return Refusal{RefusalKind::out_of_range,
                 "STEP_TOO_NEAR",
                 "change " + std::to_string(cancelled.revision) + " is about to be used in step " +
                     std::to_string(cancelled.effective_step) + " and can no longer be taken back",
                 {{"earliest_step", std::to_string(earliest_step())}}};
}

}  // namespace fusedbun::plan
