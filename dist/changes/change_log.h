#pragma once
// ChangeLog: <run_dir>/changes.log, who changed what, when and why. It only grows; what is appended is on disk before whoever
// asked gets an answer. Frames: change_log_frames.h, records: change_records.h.
//
// Opening it cuts off what a crash left half written, and refuses a file that was damaged otherwise.
//
// Thread safety: none; ChangeCommit guards it.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fusedbun/dist/changes/change_ledger.h"
#include "fusedbun/dist/changes/change_records.h"

namespace fusedbun::changes {

class ChangeLog {
 public:
  /// Opens or makes the file (0600) and appends the run record. Throws IoError (74), DataError (65).
  ChangeLog(const std::filesystem::path& run_dir, const std::string& run_id);
  ~ChangeLog();
  ChangeLog(const ChangeLog&) = delete;  // owns a file descriptor

  /// The changes that this run has from its earlier attempts; once, for they are many.
  std::vector<LoggedChange> take_changes() { return std::exchange(changes_, {}); }

  /// One write and one fdatasync for all. Throws IoError after taking back what was half written; if even that fails, the
  /// log takes nothing more.
  void append(std::span<const AcceptedChange> changes, std::span<const LedgerGroup> groups);
  /// Takes back what the last append() wrote: nobody has been told of it.
  void take_back();
  void append_end(int64_t step, std::string_view state, bool again,
                  std::span<const int64_t> rejected);

 private:
  void write_frames(const std::string& frames);
  void truncate(uint64_t bytes);

  std::filesystem::path path_;
  int fd_ = -1;
  std::vector<LoggedChange> changes_;
  uint64_t durable_bytes_ = 0;  ///< size of the file, all of it on disk
  uint64_t before_last_ = 0;    ///< the same before the last append
  bool broken_ = false;         ///< holds bytes that it must not hold
};

/// The changes of the newest run whose log lies there, also while it runs and after its end, for those who only read. None if
/// there is no log. Throws IoError, DataError.
std::vector<LoggedChange> read_change_log(const std::filesystem::path& run_dir);

/// The same as a file for `fusedbun train --changes` (changes_file.h): a run with it uses the same values in the same steps.
/// Cancelled changes are left out.
std::string logged_changes_as_toml(const std::filesystem::path& run_dir);

}  // namespace fusedbun::changes
