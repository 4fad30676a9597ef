#pragma once
// ChangeLog: <run_dir>/changes.log, who changed what, when and why. It only grows; what is appended is on disk before the client
// gets its answer. Frames: change_log_frames.h, records: change_records.h.
//
// Opening it cuts off what a crash left half written, and refuses a file that was damaged otherwise.
//
// Thread safety: none; ChangeCommitter guards it.
#include <cstdint>
#include <filesystem>
#include <optional>
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
  /// Opens or makes the file (0600) and reads it. Throws IoError (74), DataError (65).
  explicit ChangeLog(const std::filesystem::path& run_dir);
  ~ChangeLog();
  ChangeLog(const ChangeLog&) = delete;  // owns a file descriptor

  /// What the file says of the run that begins or goes on now: no changes after an end for good. Once, for they are many.
  LoggedRun take_run() { return std::exchange(run_, {}); }

  /// An attempt begins: cuts off a torn end and appends the run record. Throws IoError.
  void begin(const std::string& run_id);
  /// One write and one fdatasync for all. Throws IoError after taking back what was half written.
  void append(std::span<const AcceptedChange> changes, std::span<const LedgerGroup> groups);
  /// Takes back what the last append() wrote: nobody has been told of it. A file that cannot be cut (chattr +a) gets a record
  /// that says so instead. Throws IoError if that fails too.
  void undo_last_append();
  /// Throws IoError.
  void append_run_end(const RunEnd& end);
  /// It has bytes of changes that were not taken, and that could not be removed; tried again before each write and at the
  /// end. Meanwhile it takes nothing more.
  bool holds_what_was_not_taken() const { return remnant_.has_value(); }

 private:
  struct Remnant {
    uint64_t keep_bytes = 0;  ///< cut the file to this
    std::optional<int64_t> void_after =
        {};  ///< or say that changes above this revision are void; its frames are whole
  };
  /// Returns how many bytes of them are in the file, and errno or 0.
  std::pair<size_t, int> try_write(const std::string& frames);
  void write_frames(const std::string& frames, std::optional<int64_t> first_revision);
  void remove(Remnant remnant);
  bool try_remove(Remnant& remnant);

  std::filesystem::path path_;
  int fd_ = -1;
  LoggedRun run_;
  uint64_t durable_bytes_ = 0;  ///< size of the file, all of it on disk
  uint64_t before_last_ = 0;    ///< the same before the last append
  int64_t first_of_last_ = 0;   ///< first revision of the last append
  std::optional<Remnant> remnant_;
};

/// The changes of the newest run whose log lies there, also while it runs and after its end, for those who only read. None if
/// there is no log. Throws IoError, DataError.
std::vector<LoggedChange> read_change_log(const std::filesystem::path& run_dir);

/// The same as a file for `fusedbun train --changes` (changes_file.h): a run with it uses the same values in the same steps.
/// Cancelled changes are left out.
std::string logged_changes_as_toml(const std::filesystem::path& run_dir);

}  // namespace fusedbun::changes
