#include "fusedbun/dist/plan/change_ledger.h"

#include <algorithm>
#include <charconv>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

std::string hex(uint64_t value) {
  char digits[16];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value, 16).ptr;
  const std::string text(digits, end);
  return std::string(16 - text.size(), '0') + text;
}

std::vector<Options*> pointers_to(std::vector<Options>& options) {
  std::vector<Options*> pointers;
  for (Options& group : options) pointers.push_back(&group);
  return pointers;
}

/// Enters `job_step` with a copy of what holds and reads off what came out.
Settings settings_after(ActiveChanges active, std::vector<Options> groups, double job_max_grad_norm,
                        int64_t job_step) {
  active.enter_step(job_step, pointers_to(groups));
  Settings settings;
  for (size_t group = 0; group < groups.size(); ++group) {
    settings.lr_pins.push_back(active.lr_pin(static_cast<int>(group)));
  }
  settings.groups = std::move(groups);
  settings.max_grad_norm = active.max_grad_norm().value_or(job_max_grad_norm);
  settings.lr_scale = active.lr_scale();
  return settings;
}

/// The constructor's own judgement of the values a step would use.
std::optional<Refusal> check_whole(const Settings& settings, std::span<const LedgerGroup> groups) {
  for (size_t group = 0; group < settings.groups.size(); ++group) {
    Options options = settings.groups[group];
    options.lr = settings.lr_pins[group].value_or(0);  // an unpinned one is the schedule's affair
    try {
      validate(options);
    } catch (const ConfigError& error) {
      return Refusal{RefusalKind::invalid_argument,
                     "OUT_OF_SPEC",
                     "in group " + groups[group].name + " " + error.what(),
                     {{"group", groups[group].name}}};
    }
  }
  return std::nullopt;
}

bool same_body(const ChangeRequest& a, const ChangeRequest& b) {
  return a.patches == b.patches && a.apply_at_step == b.apply_at_step && a.reason == b.reason;
}

}  // namespace

ChangeLedger::ChangeLedger(std::vector<LedgerGroup> groups, double max_grad_norm,
                           int64_t first_step)
    : groups_(std::move(groups)),
      active_(static_cast<int>(groups_.size())),
      base_max_grad_norm_(max_grad_norm),
      current_step_(first_step),
      observed_step_(first_step - 1) {
  for (const LedgerGroup& group : groups_) base_.push_back(group.options);
}

void ChangeLedger::close_step(int64_t job_step) {
  FUSEDBUN_ASSERT(job_step >= current_step_, "a job step is closed once, and steps count up");
  current_step_ = job_step + 1;
}

void ChangeLedger::observe(const StepReport& report) {
  if (report.job_step <= observed_step_) return;
  observed_step_ = report.job_step;
  while (groups_.size() < report.group_options.size()) {
    const size_t index = groups_.size();
    groups_.push_back({"group" + std::to_string(index), 0, report.group_options[index]});
    active_.add_group();
  }
  base_ = report.group_options;
  std::vector<Options> scratch =
      base_;  // the report's values already are what the changes made of them
  active_.enter_step(observed_step_, pointers_to(scratch));
  if (!active_.max_grad_norm()) base_max_grad_norm_ = report.max_grad_norm;
  std::erase_if(open_steps_, [&](int64_t step) { return step <= observed_step_; });
}

std::variant<AcceptedChange, ChangeLedger::Replay, Refusal> ChangeLedger::propose(
    const ChangeRequest& request) const {
  if (auto repeated = find_repeated(request)) {
    if (auto* replay = std::get_if<Replay>(&*repeated)) return *replay;
    return std::get<Refusal>(*repeated);
  }
  auto resolved = resolve(request, groups_);
  if (auto* refusal = std::get_if<Refusal>(&resolved)) return *refusal;
  if (auto refusal = check_step(request)) return *refusal;
  if (auto refusal = check_etag(request)) return *refusal;

  AcceptedChange change;
  change.revision = newest_revision() + 1;
  change.effective_step = request.apply_at_step.value_or(earliest_step());
  change.request = request;
  change.unconditional = request.etag == "*";
  change.entries = std::get<std::vector<ChangeEntry>>(std::move(resolved));
  for (ChangeEntry& entry : change.entries) {
    entry.revision = change.revision;
    entry.effective_step = change.effective_step;
  }
  ActiveChanges with_change = active_;
  with_change.accept(change.entries);
  change.chain_hash = with_change.chain_hash();
  change.previous = settings_at(change.effective_step);
  change.resulting =
      settings_after(std::move(with_change), base_, base_max_grad_norm_, change.effective_step);
  if (auto refusal = check_whole(change.resulting, groups_)) return *refusal;
  return change;
}

void ChangeLedger::commit(AcceptedChange change) {
  FUSEDBUN_ASSERT(change.revision == newest_revision() + 1,
                  "a change was proposed before another was accepted");
  FUSEDBUN_ASSERT(change.effective_step >= earliest_step(),
                  "a change was proposed before the step was closed");
  active_.accept(change.entries);
  open_steps_.push_back(change.effective_step);
  if (!change.request.request_id.empty()) {
    revision_of_request_[{change.request.actor, change.request.request_id}] = change.revision;
  }
  changes_.push_back(std::move(change));
  if (newest_revision() > kRememberedRequests) {
    const ChangeRequest& forgotten = this->change(newest_revision() - kRememberedRequests).request;
    if (!forgotten.request_id.empty()) {
      revision_of_request_.erase({forgotten.actor, forgotten.request_id});
    }
  }
}

Settings ChangeLedger::settings_at(int64_t job_step) const {
  return settings_after(active_, base_, base_max_grad_norm_, job_step);
}

std::string ChangeLedger::etag() const {
  return "\"" + std::to_string(newest_revision()) + "-" + hex(chain_hash()) + "\"";
}

const AcceptedChange& ChangeLedger::change(int64_t revision) const {
  FUSEDBUN_ASSERT(revision >= 1 && revision <= newest_revision(), "there is no such revision");
  return changes_[static_cast<size_t>(revision - 1)];
}

ChangeState ChangeLedger::state_of(const AcceptedChange& change) const {
  if (change.effective_step <= observed_step_) return ChangeState::applied;
  return ended_ ? ChangeState::rejected : ChangeState::scheduled;
}

std::vector<ChangeEntry> ChangeLedger::entries(int64_t after, int64_t up_to) const {
  FUSEDBUN_ASSERT(after >= 0 && up_to <= newest_revision(), "only accepted changes have content");
  std::vector<ChangeEntry> entries;
  for (int64_t revision = after + 1; revision <= up_to; ++revision) {
    const auto& content = change(revision).entries;
    entries.insert(entries.end(), content.begin(), content.end());
  }
  return entries;
}

std::optional<std::variant<ChangeLedger::Replay, Refusal>> ChangeLedger::find_repeated(
    const ChangeRequest& request) const {
  if (request.request_id.empty()) return std::nullopt;
  const auto found = revision_of_request_.find({request.actor, request.request_id});
  if (found == revision_of_request_.end()) return std::nullopt;
  if (same_body(change(found->second).request, request)) return Replay{found->second};
  return Refusal{RefusalKind::invalid_argument,
                 "REQUEST_ID_REUSED",
                 "request_id was used for another change, revision " +
                     std::to_string(found->second) + ": give each change its own",
                 {{"revision", std::to_string(found->second)}}};
}

std::optional<Refusal> ChangeLedger::check_etag(const ChangeRequest& request) const {
  if (request.etag == "*" || request.etag == etag()) return std::nullopt;
  if (request.etag.empty()) {
    return Refusal{RefusalKind::invalid_argument,
                   "ETAG_REQUIRED",
                   "the change names no etag: send that of GetHyperparameters, or \"*\" for "
                   "whatever holds",
                   {}};
  }
  return Refusal{RefusalKind::aborted,
                 "ETAG_MISMATCH",
                 "the hyperparameters have changed since they were read: read them again",
                 {{"etag", etag()}}};
}

std::optional<Refusal> ChangeLedger::check_step(const ChangeRequest& request) const {
  if (request.apply_at_step && *request.apply_at_step < earliest_step()) {
    return Refusal{RefusalKind::out_of_range,
                   "STEP_TOO_NEAR",
                   "apply_at_step " + std::to_string(*request.apply_at_step) +
                       " cannot be reached: the job is in step " + std::to_string(current_step_) +
                       ", so a change can be used from step " + std::to_string(earliest_step()) +
                       " on",
                   {{"earliest_step", std::to_string(earliest_step())}}};
  }
  if (open_steps_.size() >= kPendingMax) {
    return Refusal{RefusalKind::resource_exhausted,
                   "TOO_MANY_PENDING",
                   std::to_string(open_steps_.size()) +
                       " changes wait for their step: send more when some have been applied",
                   {}};
  }
  return std::nullopt;
}

}  // namespace fusedbun::plan
