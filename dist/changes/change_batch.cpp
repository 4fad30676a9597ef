#include "fusedbun/dist/changes/change_batch.h"

#include <algorithm>

namespace fusedbun::changes {

ChangeBatch stage(const ChangeLedger& ledger, std::span<const ChangeRequest* const> requests,
                  int64_t spare_steps) {
  ChangeBatch batch;
  batch.staged_in_step = ledger.current_step();
  for (const ChangeRequest* request : requests) {
    auto verdict = ledger.propose(*request, batch.staged, spare_steps);
    if (auto* change = std::get_if<AcceptedChange>(&verdict)) {
      batch.answers.emplace_back(ChangeBatch::Accepted{change->revision});
      batch.staged.push_back(std::move(*change));
    } else if (const auto* replay = std::get_if<ChangeLedger::Replay>(&verdict)) {
      batch.answers.emplace_back(*replay);
    } else {
      batch.answers.emplace_back(std::get<Refusal>(std::move(verdict)));
    }
  }
  return batch;
}

bool publish(ChangeLedger& ledger, ChangeBatch& batch) {
  const bool in_time = std::ranges::all_of(
      batch.staged, [&](const AcceptedChange& change) { return ledger.is_reachable(change); });
  if (!in_time) return false;
  for (AcceptedChange& change : batch.staged) ledger.commit(std::move(change));
  return true;
}

int64_t CommitMargin::spare_steps() const {
  return *std::ranges::max_element(passed_);
}

void CommitMargin::published(int64_t steps_passed) {
  passed_[count_++ % kRemembered] = steps_passed;
}

void CommitMargin::missed(int64_t steps_passed) {
  published(std::max(steps_passed, 2 * spare_steps()));
}

}  // namespace fusedbun::changes
