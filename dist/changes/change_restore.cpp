#include "fusedbun/dist/changes/change_restore.h"

#include "fusedbun/core/error.h"
#include "fusedbun/dist/changes/changes_file.h"

namespace fusedbun::changes {
namespace {

/// What a run that diverged would use again, the newest change of a person; nothing if its values were its own.
const LoggedChange* newest_in_use(const LoggedRun& run) {
  const LoggedChange* newest = nullptr;
  for (const LoggedChange& change : run.changes) {
    const bool was_in_use = !change.cancelled && !change.request.cancels &&
                            change.request.actor != kActorOfFile &&
                            change.effective_step < run.end->step;
    if (was_in_use) newest = &change;
  }
  return newest;
}

void require_not_diverged(const LoggedRun& run) {
  if (!run.end || !run.end->diverged) return;
  const LoggedChange* change = newest_in_use(run);
  if (change == nullptr) return;
  throw ConfigError(
      "the attempt before diverged after " + std::to_string(run.end->step) +
      " steps with live changes in use, the last of them change " +
      std::to_string(change->revision) + " from step " + std::to_string(change->effective_step) +
      " on, and would again: write them to a file (fusedbun history --as-toml), leave out what was "
      "wrong, and start with --changes FILE in another run folder; or start here without all of "
      "them, with --overwrite");
}

}  // namespace

void restore_changes(ChangeLedger& ledger, const LoggedRun& run) {
  require_not_diverged(run);
  for (const LoggedChange& logged : run.changes) {
    const std::string which = "changes.log: change " + std::to_string(logged.revision);
    for (const int64_t revision : logged.overrides) {
      FUSEDBUN_REQUIRE(ledger.state_of(revision) == ChangeState::scheduled, DataError,
                       which + " overrides one that is not scheduled: the file was edited");
    }
    auto verdict = ledger.propose_again(logged.request, logged.effective_step, logged.overrides);
    if (const auto* refusal = std::get_if<Refusal>(&verdict)) {
      throw ConfigError(which + " was made for another job: " + refusal->message +
                        "; give this job a run folder of its own");
    }
    auto& change = std::get<AcceptedChange>(verdict);
    FUSEDBUN_REQUIRE(change.chain_hash == logged.chain_hash, DataError,
                     which +
                         " has another hash than this job computes: the groups are in another "
                         "order, or the file was edited");
    ledger.commit(std::move(change));
  }
}

void require_same_changes(const LoggedRun& run, int64_t revision, uint64_t chain_hash) {
  if (revision == 0) return;
  for (const LoggedChange& logged : run.changes) {
    if (logged.revision == revision && logged.chain_hash == chain_hash) return;
  }
  throw ConfigError(
      "the checkpoint was saved with changes 1 to " + std::to_string(revision) +
      " known, and changes.log in the run folder does not have the same: start from the "
      "checkpoint in a run folder of its own (--resume PATH), where its values hold and a new log "
      "begins");
}

}  // namespace fusedbun::changes
