#pragma once
// The records of changes.log as JSON texts, version 2. Each has "record" and "time" (RFC 3339, UTC):
//   {"record":"run", "version", "run_id", "pid"}                      an attempt of the run starts; what follows is its own
//   {"record":"change", "revision", "effective_step", "apply_at_step", "cancels", "overrides":[revisions], "actor", "reason",
//    "request_id", "unconditional", "values":[{"group","field","value"}], "previous":[{"group","field","value"}], "chain_hash"}
//                                                                     apply_at_step, cancels: null unless given; overrides:
//                                                                     changes of an earlier attempt that it cancels; group
//                                                                     "*" is all; previous names each group, or "*" for
//                                                                     values of the job; null: not pinned
//   {"record":"void", "after"}                                        changes of a revision above this one that come before
//                                                                     were not taken: the file could not be cut
//   {"record":"end", "step", "state", "again", "diverged", "rejected":[revisions]}
//                                                                     it ended; these changes were not used. again: the run
//                                                                     goes on in another attempt; diverged: not with these
//                                                                     values
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
/// Changes above revision `after` were not taken.
std::string void_record(int64_t after);

/// How an attempt ended.
struct RunEnd {
  int64_t step = 0;                    ///< steps done
  std::string state = {};              ///< "FAILED"
  bool again = false;                  ///< the run goes on in another attempt
  bool diverged = false;               ///< it failed of the values in use
  std::vector<int64_t> rejected = {};  ///< not used
};
std::string end_record(const RunEnd& end);

/// A change as the log has it.
struct LoggedChange {
  int64_t revision = 0;
  int64_t effective_step = 0;
  ChangeRequest request;
  uint64_t chain_hash = 0;
  std::vector<int64_t> overrides = {};  ///< of an earlier attempt, cancelled with it
  bool cancelled = false;               ///< a later one took it back
};
struct LoggedRun {
  std::vector<LoggedChange> changes;  ///< of all its attempts, in order of revision
  std::optional<RunEnd> end = {};     ///< of its newest attempt
  int64_t attempts = 0;               ///< that the file tells of, earlier runs included
};
/// The run that the records end with. Throws DataError (65) for records that are not as above.
LoggedRun read_records(std::span<const std::string> records);

}  // namespace fusedbun::changes
