#pragma once
// ChangeLog: <run_dir>/changes.log, who changed what, when and why. Append-only; each record is one line of JSON and is on
// disk before whoever asked gets an answer.
//
// Format, version 1. Every record has "record" and "time" (RFC 3339, UTC):
//   {"record":"run", "version":1, "run_id", "pid"}                    a job starts; what follows is its own
//   {"record":"change", "revision", "effective_step", "actor", "reason", "request_id", "unconditional",
//    "values":[{"group","field","value"}], "previous":[{"group","field","value"}], "chain_hash"}
//                                                                     group "*" is all; previous names each group, or
//                                                                     "*" for values of the job; null: not pinned
//   {"record":"end", "step", "state", "rejected":[revisions]}         the job ended; these changes were never used
// A line without its newline is a torn write of a crash, and was never answered.
//
// Thread safety: none; the service guards it.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "fusedbun/dist/plan/change_ledger.h"

namespace fusedbun::control {

class ChangeLog {
 public:
  /// Opens or makes the file (0600) and writes the run record. Throws IoError.
  ChangeLog(const std::filesystem::path& run_dir, const std::string& run_id);
  ~ChangeLog();
  ChangeLog(const ChangeLog&) = delete;  // owns a file descriptor
  ChangeLog& operator=(const ChangeLog&) = delete;

  /// Throws IoError after taking back what was half written.
  void append(const plan::AcceptedChange& change, std::span<const plan::LedgerGroup> groups);
  void append_end(int64_t step, std::string_view state, std::span<const int64_t> rejected);

 private:
  void write_line(std::string line);

  int fd_ = -1;
};

}  // namespace fusedbun::control
