#pragma once
// Changes that stand in a job's file: known before the first step, and used at exactly their steps.
//
// Thread safety: values and functions without state; a ChangeSchedule belongs to the training thread.
#include <span>
#include <string>
#include <vector>

#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/dist/changes/control_port.h"

namespace fusedbun::changes {

/// The actor of changes that stand in a job's file.
inline constexpr const char* kActorOfFile = "file";

struct ScheduledChange {
  ChangeRequest
      request;  ///< with apply_at_step, and a request_id that stays the same in each attempt of the run
  std::string where;  ///< "changes.toml:12: changes[2]", for complaints
};

/// What the ledger has to accept so that all of `scheduled` are in it, those left out that it has from an earlier attempt. As a
/// whole or not at all: throws ConfigError (78) with the place of the first that cannot be.
std::vector<AcceptedChange> accept_scheduled(ChangeLedger ledger,
                                             std::span<const ScheduledChange> scheduled);

/// The control port of a job without a control plane: nobody can change anything beyond the file.
class ChangeSchedule final : public ControlPort {
 public:
  /// Throws ConfigError.
  ChangeSchedule(ChangeLedger ledger, std::span<const ScheduledChange> scheduled);

  /// These are all the changes, and their hash.
  bool has(int64_t newest_revision, uint64_t chain_hash) const {
    return ledger_.newest_revision() == newest_revision && ledger_.chain_hash() == chain_hash;
  }
  int64_t newest_revision() override { return ledger_.newest_revision(); }
  Boundary close_step(int64_t) override { return {.newest_revision = ledger_.newest_revision()}; }
  std::vector<ChangeEntry> entries(int64_t after, int64_t up_to) override {
    return ledger_.entries(after, up_to);
  }
  void step_finished(const StepReport&) override {}

 private:
  ChangeLedger ledger_;
};

}  // namespace fusedbun::changes
