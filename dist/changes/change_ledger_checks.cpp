// The checks that a request goes through before it is a change.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/dist/plan/hex.h"

namespace fusedbun::changes {
namespace {

/// Bytes that differ whenever one of the parts does: each is preceded by its length.
class Bytes {
 public:
  void add(std::string_view part) {
    const uint64_t size = part.size();
    add_value(size);
    bytes_.append(part);
  }
  template <class Value>
  void add_value(const Value& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  uint64_t hash() const { return XXH3_64bits(bytes_.data(), bytes_.size()); }

 private:
  std::string bytes_;
};

}  // namespace

bool ChangeLedger::is_cancelled_in(Staged staged, int64_t revision) {
  return std::ranges::any_of(staged, [&](const AcceptedChange& other) {
    return other.request.cancels == revision ||
           std::ranges::find(other.overrides, revision) != other.overrides.end();
  });
}

uint64_t ChangeLedger::body_hash(const ChangeRequest& request) {
  Bytes body;
  for (const ValuePatch& patch : request.patches) {
    body.add(patch.group);
    body.add_value(patch.field);
    body.add_value(patch.value == 0 ? 0.0 : patch.value);  // -0 is 0
  }
  for (const std::optional<int64_t>& number : {request.apply_at_step, request.cancels}) {
    body.add_value(number.has_value());
    body.add_value(number.value_or(0));
  }
  body.add(request.reason);
  return body.hash();
}

std::string ChangeLedger::etag_of(int64_t revision, uint64_t chain_hash) {
  return "\"" + std::to_string(revision) + "-" + plan::to_hex(chain_hash) + "\"";
}

std::optional<ChangeLedger::Verdict> ChangeLedger::find_repeated(const ChangeRequest& request,
                                                                 Staged staged) const {
  if (request.request_id.empty()) return std::nullopt;
  std::optional<Remembered> first;
  const auto found = requests_.find({request.actor, request.request_id});
  if (found != requests_.end()) first = found->second;
  for (const AcceptedChange& change : staged) {
    if (change.request.actor != request.actor || change.request.request_id != request.request_id)
      continue;
    first = {change.revision, body_hash(change.request)};
  }
  if (!first) return std::nullopt;
  const int64_t revision = first->revision;
  if (first->body_hash == body_hash(request)) return Replay{revision};
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

std::optional<Refusal> ChangeLedger::check_step(const ChangeRequest& request,
                                                int64_t effective_step, Staged staged) const {
  if (request.apply_at_step && *request.apply_at_step < earliest_step()) {
    return Refusal{RefusalKind::out_of_range,
                   "STEP_TOO_NEAR",
                   "apply_at_step " + std::to_string(*request.apply_at_step) +
                       " cannot be reached: the job is in step " + std::to_string(current_step_) +
                       ", so a change can be used from step " + std::to_string(earliest_step()) +
                       " on",
                   {{"earliest_step", std::to_string(earliest_step())}}};
  }
  if (total_steps_ > 0 && effective_step >= total_steps_) {
    return Refusal{RefusalKind::out_of_range,
                   "STEP_AFTER_END",
                   "the change could be used from step " + std::to_string(effective_step) +
                       " on, but the run ends with step " + std::to_string(total_steps_ - 1),
                   {{"last_step", std::to_string(total_steps_ - 1)}}};
  }
  const size_t pending = made_here_ + staged.size();
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
  if (is_cancellation(revision))
    return not_scheduled("is a cancellation, and cannot be taken back");
  if (is_cancelled_in(staged, revision) || state_of(revision) == ChangeState::cancelled)
    return not_scheduled("was cancelled before");
  if (state_of(revision) != ChangeState::scheduled) return not_scheduled("has been used");
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

}  // namespace fusedbun::changes
