#include "fusedbun/dist/changes/change_ledger.h"

#include <algorithm>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::changes {
namespace {

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

bool overwrite_each_other(const ChangeEntry& one, const ChangeEntry& other) {
  return slot_of(one.field) == slot_of(other.field) &&
         (one.group == other.group || one.group < 0 || other.group < 0);
}

bool is_for_next_step(const ChangeRequest& request) {
  return !request.apply_at_step && !request.cancels;
}

}  // namespace

ChangeLedger::ChangeLedger(std::vector<LedgerGroup> groups, double max_grad_norm,
                           int64_t first_step, JobCapabilities capabilities, int64_t total_steps)
    : groups_(std::move(groups)),
      capabilities_(capabilities),
      active_(static_cast<int>(groups_.size())),
      base_max_grad_norm_(max_grad_norm),
      first_step_(first_step),
      total_steps_(total_steps),
      current_step_(first_step),
      observed_step_(first_step - 1) {
  for (const LedgerGroup& group : groups_) base_.push_back(group.options);
}

void ChangeLedger::begin_at(int64_t first_step) {
  FUSEDBUN_ASSERT(current_step_ == first_step_ && first_step >= first_step_,
                  "a job goes on before it has begun");
  first_step_ = current_step_ = first_step;
  observed_step_ = first_step - 1;
  std::vector<Options> scratch = base_;  // they are what the changes made of them
  active_.enter_step(observed_step_, pointers_to(scratch));
  while (!open_.empty() && open_.begin()->first <= observed_step_) {
    close(change(open_.begin()->second));
  }
}

void ChangeLedger::close_step(int64_t job_step) {
  FUSEDBUN_ASSERT(job_step >= current_step_, "a job step is closed once, and steps count up");
  current_step_ = job_step + 1;
}

std::vector<int64_t> ChangeLedger::observe(const StepReport& report) {
  if (report.job_step <= observed_step_) return {};
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
  std::vector<int64_t> applied;
  while (!open_.empty() && open_.begin()->first <= observed_step_) {
    applied.push_back(open_.begin()->second);
    close(change(applied.back()));
  }
  return applied;
}

std::vector<int64_t> ChangeLedger::end_run() {
  ended_ = true;
  std::vector<int64_t> rejected;
  for (const auto& [step, revision] : open_) rejected.push_back(revision);
  std::ranges::sort(rejected);
  open_.clear();
  made_here_ = 0;
  return rejected;
}

int64_t ChangeLedger::next_step(int64_t spare_steps, Staged staged) const {
  int64_t step = std::max(earliest_step() + spare_steps, newest_next_step_);
  for (const AcceptedChange& change : staged) {
    if (is_for_next_step(change.request)) step = std::max(step, change.effective_step);
  }
  return step;
}

// ---- the decision ------------------------------------------------------------------------------

ChangeLedger::Verdict ChangeLedger::propose(const ChangeRequest& request, Staged staged,
                                            int64_t spare_steps) const {
  if (auto repeated = find_repeated(request, staged)) return *repeated;
  if (request.cancels) {
    if (auto refusal = check_size(request)) return *refusal;
    if (auto refusal = check_cancel(request, staged)) return *refusal;
    if (auto refusal = check_cancel_step(change(*request.cancels))) return *refusal;
    return make_cancel(request, staged);
  }
  auto resolved = resolve(request, groups_, capabilities_);
  if (auto* refusal = std::get_if<Refusal>(&resolved)) return *refusal;
  const int64_t step = request.apply_at_step.value_or(next_step(spare_steps, staged));
  if (auto refusal = check_step(request, step, staged)) return *refusal;
  if (auto refusal = check_etag(request, staged)) return *refusal;
  auto entries = std::get<std::vector<ChangeEntry>>(std::move(resolved));
  auto overrides = overridden_by(entries, step, staged);
  return make(request, std::move(entries), step, std::move(overrides), staged);
}

ChangeLedger::Verdict ChangeLedger::propose_at_start(const ChangeRequest& request) const {
  FUSEDBUN_ASSERT(request.apply_at_step.has_value(), "a change of a job's file names its step");
  if (auto repeated = find_repeated(request, {})) return *repeated;
  if (*request.apply_at_step < first_step_) {
    return Refusal{RefusalKind::out_of_range,
                   "STEP_TOO_NEAR",
                   "step " + std::to_string(*request.apply_at_step) + " is before the first, " +
                       std::to_string(first_step_),
                   {{"earliest_step", std::to_string(first_step_)}}};
  }
  return propose_again(request, *request.apply_at_step);
}

ChangeLedger::Verdict ChangeLedger::propose_again(const ChangeRequest& request,
                                                  int64_t effective_step,
                                                  std::vector<int64_t> overrides) const {
  Verdict verdict;
  if (request.cancels) {
    if (auto refusal = check_cancel(request, {})) return *refusal;
    verdict = make_cancel(request, {});
  } else {
    auto resolved = resolve(request, groups_, capabilities_);
    if (auto* refusal = std::get_if<Refusal>(&resolved)) return *refusal;
    verdict = make(request, std::get<std::vector<ChangeEntry>>(std::move(resolved)), effective_step,
                   std::move(overrides), {});
  }
  if (auto* change = std::get_if<AcceptedChange>(&verdict)) change->known_at_start = true;
  return verdict;
}

ChangeLedger::Verdict ChangeLedger::make(const ChangeRequest& request,
                                         std::vector<ChangeEntry> entries, int64_t effective_step,
                                         std::vector<int64_t> overrides, Staged staged) const {
  AcceptedChange change;
  change.revision = newest_revision() + static_cast<int64_t>(staged.size()) + 1;
  change.effective_step = effective_step;
  change.request = request;
  change.unconditional = request.etag == "*";
  change.entries = std::move(entries);
  for (const int64_t revision : overrides)
    change.entries.push_back({.field = Field::cancel, .value = static_cast<double>(revision)});
  change.overrides = std::move(overrides);
  for (ChangeEntry& entry : change.entries) {
    entry.revision = change.revision;
    entry.effective_step = change.effective_step;
  }
  ActiveChanges active = active_;
  for (const AcceptedChange& before : staged) active.accept(before.entries);
  change.previous = settings_after(active, base_, base_max_grad_norm_, effective_step);
  active.accept(change.entries);
  change.chain_hash = active.chain_hash();
  change.resulting = settings_after(std::move(active), base_, base_max_grad_norm_, effective_step);
  if (auto refusal = check_whole(change.resulting, groups_)) return *refusal;
  return change;
}

ChangeLedger::Verdict ChangeLedger::make_cancel(const ChangeRequest& request, Staged staged) const {
  const int64_t cancelled = *request.cancels;
  return make(request, {{.field = Field::cancel, .value = static_cast<double>(cancelled)}},
              change(cancelled).effective_step, {}, staged);
}

std::vector<int64_t> ChangeLedger::overridden_by(std::span<const ChangeEntry> entries,
                                                 int64_t effective_step, Staged staged) const {
  std::vector<int64_t> overridden;
  for (auto later = open_.upper_bound({effective_step, newest_revision() + 1});
       later != open_.end(); ++later) {
    const int64_t revision = later->second;
    const AcceptedChange& earlier = change(revision);
    const bool may_be_overridden = revision <= restored_ && is_for_next_step(earlier.request);
    if (!may_be_overridden || is_cancelled_in(staged, revision)) continue;
    const bool overwrites = std::ranges::any_of(entries, [&](const ChangeEntry& entry) {
      return std::ranges::any_of(earlier.entries, [&](const ChangeEntry& other) {
        return overwrite_each_other(entry, other);
      });
    });
    if (overwrites) overridden.push_back(revision);
  }
  return overridden;
}

bool ChangeLedger::is_repeated(const ChangeRequest& request) const {
  const auto repeated = find_repeated(request, {});
  return repeated && std::holds_alternative<Replay>(*repeated);
}

bool ChangeLedger::is_reachable(const AcceptedChange& change) const {
  return change.effective_step >= earliest_step();
}

void ChangeLedger::commit(AcceptedChange change) {
  FUSEDBUN_ASSERT(change.revision == newest_revision() + 1,
                  "a change was proposed before another was accepted");
  FUSEDBUN_ASSERT(change.known_at_start ? current_step_ == first_step_ : is_reachable(change),
                  "a change is accepted while its step can be reached");
  active_.accept(change.entries);
  entries_.insert(entries_.end(), change.entries.begin(), change.entries.end());
  std::vector<int64_t> cancelled = change.overrides;
  if (change.request.cancels) cancelled.push_back(*change.request.cancels);
  for (const int64_t revision : cancelled) {
    cancelled_by_[revision] = change.revision;
    close(this->change(revision));
  }
  if (!change.request.cancels) open(change);
  if (change.known_at_start) {
    restored_ = change.revision;
  } else if (is_for_next_step(change.request)) {
    newest_next_step_ = change.effective_step;
  }
  remember_request(change);
  traces_.push_back(Trace::held);
  const int64_t revision = change.revision;
  changes_.emplace(revision, std::move(change));
}

void ChangeLedger::open(const AcceptedChange& change) {
  open_.emplace(change.effective_step, change.revision);
  if (!change.known_at_start) ++made_here_;
}

void ChangeLedger::close(const AcceptedChange& change) {
  if (open_.erase({change.effective_step, change.revision}) > 0 && !change.known_at_start)
    --made_here_;
}

void ChangeLedger::remember_request(const AcceptedChange& change) {
  if (!change.request.request_id.empty()) {
    const RequestKey key{change.request.actor, change.request.request_id};
    requests_[key] = {change.revision, body_hash(change.request)};
    request_order_.emplace_back(change.revision, key);
  }
  while (!request_order_.empty() &&
         request_order_.front().first <= change.revision - kRememberedRequests) {
    const auto& [revision, key] = request_order_.front();
    if (const auto found = requests_.find(key);
        found != requests_.end() && found->second.revision == revision) {
      requests_.erase(found);
    }
    request_order_.pop_front();
  }
}

// ---- what holds --------------------------------------------------------------------------------

Settings ChangeLedger::settings_at(int64_t job_step) const {
  return settings_after(active_, base_, base_max_grad_norm_, job_step);
}

std::string ChangeLedger::etag() const {
  return etag_of(newest_revision(), chain_hash());
}

const AcceptedChange* ChangeLedger::find(int64_t revision) const {
  FUSEDBUN_ASSERT(revision >= 1 && revision <= newest_revision(), "there is no such revision");
  const auto found = changes_.find(revision);
  return found == changes_.end() ? nullptr : &found->second;
}

const AcceptedChange& ChangeLedger::change(int64_t revision) const {
  const AcceptedChange* change = find(revision);
  FUSEDBUN_ASSERT(change != nullptr, "a change is asked for while the ledger holds it");
  return *change;
}

ChangeState ChangeLedger::state_of(int64_t revision) const {
  const AcceptedChange* change = find(revision);
  if (change == nullptr) {
    switch (traces_[static_cast<size_t>(revision - 1)]) {
      case Trace::cancelled:
        return ChangeState::cancelled;
      case Trace::rejected:
        return ChangeState::rejected;
      default:
        return ChangeState::applied;
    }
  }
  if (change->request.cancels) return ChangeState::applied;
  if (cancelled_by(revision) > 0) return ChangeState::cancelled;
  if (change->effective_step <= observed_step_) return ChangeState::applied;
  return ended_ ? ChangeState::rejected : ChangeState::scheduled;
}

bool ChangeLedger::is_cancellation(int64_t revision) const {
  const AcceptedChange* change = find(revision);
  return change != nullptr ? change->request.cancels.has_value()
                           : traces_[static_cast<size_t>(revision - 1)] == Trace::cancellation;
}

int64_t ChangeLedger::cancelled_by(int64_t revision) const {
  const auto found = cancelled_by_.find(revision);
  return found == cancelled_by_.end() ? 0 : found->second;
}

std::vector<ChangeEntry> ChangeLedger::entries(int64_t after, int64_t up_to) {
  FUSEDBUN_ASSERT(after >= 0 && up_to <= newest_revision(), "only accepted changes have content");
  FUSEDBUN_ASSERT(after >= known_to_ranks_, "no rank asks again for what all ranks have");
  known_to_ranks_ = after;
  while (!entries_.empty() && entries_.front().revision <= after) entries_.pop_front();
  std::vector<ChangeEntry> wanted;
  for (const ChangeEntry& entry : entries_) {
    if (entry.revision <= up_to) wanted.push_back(entry);
  }
  return wanted;
}

// ---- what is forgotten -------------------------------------------------------------------------

std::vector<int64_t> ChangeLedger::settled(size_t count_max) const {
  std::vector<int64_t> revisions;
  for (const auto& [revision, change] : changes_) {
    if (revisions.size() == count_max) break;
    if (state_of(revision) != ChangeState::scheduled) revisions.push_back(revision);
  }
  return revisions;
}

void ChangeLedger::forget(std::span<const int64_t> revisions) {
  for (const int64_t revision : revisions) {
    const ChangeState state = state_of(revision);
    FUSEDBUN_ASSERT(state != ChangeState::scheduled, "only settled changes are forgotten");
    Trace& trace = traces_[static_cast<size_t>(revision - 1)];
    trace = is_cancellation(revision)         ? Trace::cancellation
            : state == ChangeState::cancelled ? Trace::cancelled
            : state == ChangeState::rejected  ? Trace::rejected
                                              : Trace::applied;
    changes_.erase(revision);
    cancelled_by_.erase(revision);
  }
}

}  // namespace fusedbun::changes
