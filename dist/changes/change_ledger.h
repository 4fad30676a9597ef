#pragma once
// ChangeLedger: the accepted changes of a job, in order of revision, and the decision whether the next one is accepted.
//
// Memory: the ledger holds a change until it is settled and its caller has put it elsewhere (forget()); of older ones it keeps a byte
// each, and what it needs for the promises below.
//
// A request goes through propose(), which decides and changes nothing, and then commit(); in between its caller makes it
// durable, alone or together with others that are proposed on top of it (change_batch.h). The ledger folds changes with ActiveChanges, the class that the ranks fold them with, so what it shows is what
// they use.
//
// Invariants: 1. Revisions count from 1 without a gap. 2. A change is used at the earliest at current step + kLead, where
// current is the job step whose header is not yet sent. 3. The etag changes with every accepted change, and only then.
// 4. (actor, request_id) of the last kRememberedRequests changes brings the same change back, whatever came in between.
// 5. A cancellation is a change of its own, with a revision, and leaves the step of what it cancels. 6. What people want now
// wins over what they wanted in an earlier attempt: a change cancels the next-step changes of earlier attempts that would
// overwrite it in a later step. Those that were asked for at a step of their own stay.
//
// Thread safety: none; the service guards it.
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "fusedbun/dist/changes/change.h"
#include "fusedbun/dist/changes/change_request.h"
#include "fusedbun/dist/changes/control_port.h"

namespace fusedbun::changes {

/// What holds at some job step.
struct Settings {
  std::vector<Options> groups;                 ///< [group]; lr: see lr_pins
  std::vector<std::optional<double>> lr_pins;  ///< [group]; empty: the schedule decides
  double max_grad_norm = 0;                    ///< 0: off
  double lr_scale = 1;
};

struct AcceptedChange {
  int64_t revision = 0;
  int64_t effective_step = 0;
  ChangeRequest request;
  std::vector<ChangeEntry> entries;
  Settings previous;  ///< at effective_step, as planned when it was accepted
  Settings resulting;
  uint64_t chain_hash = 0;
  std::vector<int64_t> overrides = {};  ///< changes of an earlier attempt that it cancels
  bool unconditional = false;
  bool known_at_start = false;  ///< ranks learn of it before the first step
};

enum class ChangeState : uint8_t { scheduled, applied, cancelled, rejected };

class ChangeLedger {
 public:
  static constexpr size_t kPendingMax = 1024;
  static constexpr int64_t kRememberedRequests = 4096;

  /// `first_step` is the job step that comes first. `max_grad_norm` 0 means off. `total_steps` of the whole run; 0: unknown.
  ChangeLedger(std::vector<LedgerGroup> groups, double max_grad_norm, int64_t first_step,
               JobCapabilities capabilities = {}, int64_t total_steps = 0);

  /// The job goes on at this step, after those of an earlier attempt; once, when that attempt's changes are in. The groups' options
  /// are those of that step.
  void begin_at(int64_t first_step);
  /// The header of `job_step` is about to be sent.
  void close_step(int64_t job_step);
  /// A job step has ended and used these values. Late param groups become known here, as "group<index>". Returns the revisions
  /// that have become applied.
  std::vector<int64_t> observe(const StepReport& report);
  /// The run is over: what is still scheduled is rejected from here on. Returns those revisions.
  std::vector<int64_t> end_run();

  /// The revision whose request this one repeats.
  struct Replay {
    int64_t revision = 0;
  };
  using Verdict = std::variant<AcceptedChange, Replay, Refusal>;
  /// AcceptedChange is what commit() would make of it after `staged`, proposed before and not yet committed. `spare_steps`: how
  /// many steps may be closed before commit() without making a change for the next step come too late.
  Verdict propose(const ChangeRequest& request, std::span<const AcceptedChange> staged = {},
                  int64_t spare_steps = 0) const;
  /// A change that is known before the first step, from a job's file: its apply_at_step may be any step, and it has no etag.
  Verdict propose_at_start(const ChangeRequest& request) const;
  /// A change of an earlier attempt of the run, as its log has it; before the first step, in order of revision.
  Verdict propose_again(const ChangeRequest& request, int64_t effective_step,
                        std::vector<int64_t> overrides = {}) const;
  /// Has it been accepted before?
  bool is_repeated(const ChangeRequest& request) const;
  /// Can every rank still learn of it before its step?
  bool is_reachable(const AcceptedChange& change) const;
  /// `change` is what one of them returned, is reachable or known at the start, and no other was committed in between.
  void commit(AcceptedChange change);

  /// The job step whose header is not yet sent.
  int64_t current_step() const { return current_step_; }
  /// The earliest job step that a new change can reach.
  int64_t earliest_step() const { return current_step_ + kLead; }
  /// The job step of a change for the next step: not before that of an earlier one, so that the newest wins. Settings there
  /// hold all of them.
  int64_t next_step(int64_t spare_steps) const { return next_step(spare_steps, {}); }
  /// After all changes accepted for `job_step` and before; not defined for steps that have ended.
  Settings settings_at(int64_t job_step) const;
  std::string etag() const;

  const std::vector<LedgerGroup>& groups() const { return groups_; }
  const JobCapabilities& capabilities() const { return capabilities_; }
  int64_t newest_revision() const { return static_cast<int64_t>(traces_.size()); }
  uint64_t chain_hash() const { return active_.chain_hash(); }
  /// Nothing if the change is forgotten. Revision in [1, newest_revision()].
  const AcceptedChange* find(int64_t revision) const;
  /// One that is not forgotten: scheduled, or known to its caller to be held.
  const AcceptedChange& change(int64_t revision) const;
  /// Also of forgotten ones.
  ChangeState state_of(int64_t revision) const;
  /// The revision that cancelled this one, which is not forgotten; 0: none.
  int64_t cancelled_by(int64_t revision) const;
  /// Does any change still wait for its step?
  bool has_scheduled() const { return !open_.empty(); }
  /// Content of the changes (after, up_to]. All ranks have that up to `after`, so it is asked for no more.
  std::vector<ChangeEntry> entries(int64_t after, int64_t up_to);

  /// The oldest changes whose state will never change, at most `count_max`.
  std::vector<int64_t> settled(size_t count_max) const;
  /// Drops the content of settled changes.
  void forget(std::span<const int64_t> revisions);
  /// How many changes are not forgotten.
  size_t held() const { return changes_.size(); }

 private:
  using Staged = std::span<const AcceptedChange>;
  void open(const AcceptedChange& change);
  void close(const AcceptedChange& change);
  static bool is_cancelled_in(Staged staged, int64_t revision);
  static std::string etag_of(int64_t revision, uint64_t chain_hash);
  int64_t next_step(int64_t spare_steps, Staged staged) const;
  std::optional<Verdict> find_repeated(const ChangeRequest& request, Staged staged) const;
  std::optional<Refusal> check_etag(const ChangeRequest& request, Staged staged) const;
  std::optional<Refusal> check_step(const ChangeRequest& request, int64_t effective_step,
                                    Staged staged) const;
  /// Next-step changes of earlier attempts that would overwrite one of `entries` later.
  std::vector<int64_t> overridden_by(std::span<const ChangeEntry> entries, int64_t effective_step,
                                     Staged staged) const;
  std::optional<Refusal> check_cancel(const ChangeRequest& request, Staged staged) const;
  std::optional<Refusal> check_cancel_step(const AcceptedChange& cancelled) const;
  /// All checks are done but that of the values as a whole.
  Verdict make(const ChangeRequest& request, std::vector<ChangeEntry> entries,
               int64_t effective_step, std::vector<int64_t> overrides, Staged staged) const;
  Verdict make_cancel(const ChangeRequest& request, Staged staged) const;

  std::vector<LedgerGroup> groups_;
  JobCapabilities capabilities_;
  using RequestKey = std::pair<std::string, std::string>;  ///< actor, request_id
  struct Remembered {
    int64_t revision = 0;
    uint64_t body_hash = 0;  ///< of what makes two requests the same
  };
  static uint64_t body_hash(const ChangeRequest& request);
  void remember_request(const AcceptedChange& change);
  bool is_cancellation(int64_t revision) const;
  /// What is left of a change, one byte.
  enum class Trace : uint8_t { held, cancellation, applied, cancelled, rejected };

  std::map<int64_t, AcceptedChange> changes_;  ///< by revision, without the forgotten ones
  std::vector<Trace> traces_;                  ///< [revision - 1]
  std::deque<ChangeEntry> entries_;            ///< of the changes that some rank may still lack
  int64_t known_to_ranks_ = 0;                 ///< entries up to this revision are dropped
  std::map<RequestKey, Remembered> requests_;
  std::deque<std::pair<int64_t, RequestKey>> request_order_;  ///< by revision, the oldest first
  std::map<int64_t, int64_t> cancelled_by_;  ///< revision -> the revision that cancelled it
  /// (effective step, revision) of the scheduled ones: a step that ends looks at those that are due, and at no others.
  std::set<std::pair<int64_t, int64_t>> open_;
  size_t made_here_ = 0;           ///< of them, without those that were known before the first step
  int64_t newest_next_step_ = 0;   ///< effective step of the newest change for the next step
  int64_t restored_ = 0;           ///< the newest revision that was known before the first step
  ActiveChanges active_;           ///< all changes accepted, entered up to observed_step_
  std::vector<Options> base_;      ///< [group] in use in observed_step_
  double base_max_grad_norm_ = 0;  ///< what the job itself set
  int64_t first_step_ = 0;
  int64_t total_steps_ = 0;  ///< 0: unknown
  int64_t current_step_ = 0;
  int64_t observed_step_ = -1;  ///< the last job step known to have ended
  bool ended_ = false;
};

}  // namespace fusedbun::changes
