#pragma once
// What a run's log says, back into the ledger of its next attempt.
//
// Thread safety: functions without state.
#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/dist/changes/change_records.h"

namespace fusedbun::changes {

/// Commits the run's changes as they were, in order of revision; the ledger is new. Throws ConfigError (78) if one does not fit
/// this job (a group that it lacks), or if the attempt before diverged with changes in use that people had made: they would
/// apply again, and it would diverge again. DataError (65) if the ledger comes to another hash than the log.
void restore_changes(ChangeLedger& ledger, const LoggedRun& run);

/// A checkpoint was saved when its ranks knew the changes up to `revision`, whose chain hash this was: the log must have the same,
/// or hyperparameters and history would differ from here on. Throws ConfigError (78).
void require_same_changes(const LoggedRun& run, int64_t revision, uint64_t chain_hash);

}  // namespace fusedbun::changes
