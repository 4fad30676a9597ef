#pragma once
// The records of changes.log as JSON texts, version 2. Each has "record" and "time" (RFC 3339, UTC):
//   {"record":"run", "version", "run_id", "pid"}                      an attempt of the run starts; what follows is its own
//   {"record":"change", "revision", "effective_step", "apply_at_step", "cancels", "actor", "reason", "request_id",
//    "unconditional", "values":[{"group","field","value"}], "previous":[{"group","field","value"}], "chain_hash"}
//                                                                     apply_at_step, cancels: null unless given; group "*"
//                                                                     is all; previous names each group, or "*" for values
//                                                                     of the job; null: not pinned
//   {"record":"end", "step", "state", "again", "rejected":[revisions]} it ended; these changes were not used. again: the run
//                                                                     goes on in another attempt
// Text of clients is ASCII with escapes: no character of theirs reaches a terminal that shows the file.
//
// Thread safety: functions without state.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "fusedbun/dist/changes/change_ledger.h"

namespace fusedbun::changes {

std::string run_record(const std::string& run_id, int64_t pid);
std::string change_record(const AcceptedChange& change, std::span<const LedgerGroup> groups);
std::string end_record(int64_t step, std::string_view state, bool again,
                       std::span<const int64_t> rejected);

/// A change as the log has it.
struct LoggedChange {
  int64_t revision = 0;
  int64_t effective_step = 0;
  ChangeRequest request;
  uint64_t chain_hash = 0;
  bool cancelled = false;  ///< a later one took it back
};
struct LoggedRun {
  std::vector<LoggedChange> changes;  ///< of all its attempts, in order of revision
  bool ended_for_good = false;        ///< what follows will be another run
};
/// The run that the records end with. Throws DataError (65) for records that are not as above.
LoggedRun read_records(std::span<const std::string> records);

}  // namespace fusedbun::changes
