#include "fusedbun/dist/changes/change_restore.h"

#include "fusedbun/core/error.h"

namespace fusedbun::changes {

void restore_changes(ChangeLedger& ledger, std::span<const LoggedChange> changes) {
  for (const LoggedChange& logged : changes) {
    const std::string which = "changes.log: change " + std::to_string(logged.revision);
    auto verdict = ledger.propose_again(logged.request, logged.effective_step);
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

}  // namespace fusedbun::changes
