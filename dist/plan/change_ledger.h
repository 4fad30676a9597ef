#pragma once
// ChangeLedger: the accepted changes of a job, in order of revision, and the decision whether the next one is accepted.
//
// A request goes through propose(), which decides and changes nothing, and then commit(); in between its caller makes it
// durable. The ledger folds changes with ActiveChanges, the class that the ranks fold them with, so what it shows is what
// they use.
//
// Invariants: 1. Revisions count from 1 without a gap. 2. A change is used at the earliest at current step + kLead, where
// current is the job step whose header is not yet sent. 3. The etag changes with every accepted change, and only then.
// 4. (actor, request_id) of the last kRememberedRequests changes brings the same change back, whatever came in between.
//
// Thread safety: none; the service guards it.
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "fusedbun/dist/plan/change.h"
#include "fusedbun/dist/plan/change_request.h"
#include "fusedbun/dist/plan/control_port.h"

namespace fusedbun::plan {

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
  bool unconditional = false;
};

enum class ChangeState : uint8_t { scheduled, applied, rejected };

class ChangeLedger {
 public:
  static constexpr size_t kPendingMax = 1024;
  static constexpr int64_t kRememberedRequests = 4096;

  /// `first_step` is the job step that comes first. `max_grad_norm` 0 means off.
  ChangeLedger(std::vector<LedgerGroup> groups, double max_grad_norm, int64_t first_step);

  /// The header of `job_step` is about to be sent.
  void close_step(int64_t job_step);
  /// A job step has ended and used these values. Late param groups become known here, as "group<index>".
  void observe(const StepReport& report);
  /// The run is over: what is still scheduled is rejected from here on.
  void end_run() { ended_ = true; }

  /// The revision whose request this one repeats.
  struct Replay {
    int64_t revision = 0;
  };
  /// AcceptedChange is what commit() would make of it.
  std::variant<AcceptedChange, Replay, Refusal> propose(const ChangeRequest& request) const;
  /// `change` is what propose() returned, with no other call to commit() or close_step() in between.
  void commit(AcceptedChange change);

  /// The job step whose header is not yet sent.
  int64_t current_step() const { return current_step_; }
  /// The earliest job step that a new change can reach.
  int64_t earliest_step() const { return current_step_ + kLead; }
  /// After all changes accepted for `job_step` and before; not defined for steps that have ended.
  Settings settings_at(int64_t job_step) const;
  std::string etag() const;

  const std::vector<LedgerGroup>& groups() const { return groups_; }
  int64_t newest_revision() const { return static_cast<int64_t>(changes_.size()); }
  uint64_t chain_hash() const { return active_.chain_hash(); }
  /// Revision in [1, newest_revision()].
  const AcceptedChange& change(int64_t revision) const;
  ChangeState state_of(const AcceptedChange& change) const;
  /// Content of the changes (after, up_to].
  std::vector<ChangeEntry> entries(int64_t after, int64_t up_to) const;

 private:
  std::optional<Refusal> check_etag(const ChangeRequest& request) const;
  std::optional<Refusal> check_step(const ChangeRequest& request) const;
  std::optional<std::variant<Replay, Refusal>> find_repeated(const ChangeRequest& request) const;

  std::vector<LedgerGroup> groups_;
  std::deque<AcceptedChange> changes_;  ///< [revision - 1]
  std::map<std::pair<std::string, std::string>, int64_t> revision_of_request_;
  std::vector<int64_t> open_steps_;  ///< effective steps of changes that no observed step has used
  ActiveChanges active_;             ///< all changes accepted, entered up to observed_step_
  std::vector<Options> base_;        ///< [group] in use in observed_step_
  double base_max_grad_norm_ = 0;    ///< what the job itself set
  int64_t current_step_ = 0;
  int64_t observed_step_ = -1;  ///< the last job step known to have ended
  bool ended_ = false;
};

}  // namespace fusedbun::plan
