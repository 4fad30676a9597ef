#include "fusedbun/dist/changes/change_schedule.h"

#include "fusedbun/core/error.h"

namespace fusedbun::changes {

std::vector<AcceptedChange> accept_scheduled(ChangeLedger ledger,
                                             std::span<const ScheduledChange> scheduled) {
  std::vector<AcceptedChange> accepted;
  for (const ScheduledChange& change : scheduled) {
    auto verdict = ledger.propose_at_start(change.request);
    if (const auto* refusal = std::get_if<Refusal>(&verdict)) {
      const bool edited = refusal->reason == "REQUEST_ID_REUSED";
      throw ConfigError(change.where + ": " +
                        (edited ? "this run has begun with another change in its place: give the "
                                  "run another folder"
                                : refusal->message));
    }
    if (auto* made = std::get_if<AcceptedChange>(&verdict)) {
      accepted.push_back(*made);
      ledger.commit(std::move(*made));
    }
  }
  return accepted;
}

ChangeSchedule::ChangeSchedule(ChangeLedger ledger, std::span<const ScheduledChange> scheduled)
    : ledger_(std::move(ledger)) {
  for (AcceptedChange& change : accept_scheduled(ledger_, scheduled))
    ledger_.commit(std::move(change));
}

}  // namespace fusedbun::changes
