#pragma once
// ChangeBatch: changes that are made durable together. While they are on their way to the disk the ledger goes on closing
// steps, so a batch can come back too late for its step; then it is taken back whole and staged again.
//
//   batch = stage(ledger, requests, margin.spare_steps())     the ledger is locked
//   write batch.staged to the log                             it is not; steps go on
//   publish(ledger, batch)                                    locked again; false: take it off the log, stage again
//
// Nobody learns of a change before publish() has returned true.
//
// Thread safety: values.
#include <array>
#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "fusedbun/dist/changes/change_ledger.h"

namespace fusedbun::changes {

struct ChangeBatch {
  /// What became of a request: the revision it has (Replay: already had), or why it has none.
  struct Accepted {
    int64_t revision = 0;
  };
  using Answer = std::variant<Accepted, ChangeLedger::Replay, Refusal>;
  std::vector<Answer> answers;         ///< in the order of the requests
  std::vector<AcceptedChange> staged;  ///< in order of revision
  int64_t staged_in_step = 0;
};

/// Proposes the requests one on top of the other. Changes nothing.
ChangeBatch stage(const ChangeLedger& ledger, std::span<const ChangeRequest* const> requests,
                  int64_t spare_steps);
/// Commits what was staged if every step is still reachable; else false, and nothing has changed. No other change was committed
/// in between.
bool publish(ChangeLedger& ledger, ChangeBatch& batch);

/// How many steps are closed while a batch is written: 0 with steps that are long against the disk. The most of the last
/// kRemembered batches.
class CommitMargin {
 public:
  int64_t spare_steps() const;
  void published(int64_t steps_passed);
  /// A batch came too late: doubles what is spared, so that a few attempts reach any disk.
  void missed(int64_t steps_passed);

 private:
  static constexpr size_t kRemembered = 8;
  std::array<int64_t, kRemembered> passed_{};  ///< a ring
  size_t count_ = 0;
};

}  // namespace fusedbun::changes
