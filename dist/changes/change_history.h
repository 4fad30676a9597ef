#pragma once
// ChangeHistory: the changes that the ledger has forgotten, in a file without a name in the run folder: each is the text that its
// caller gave for it. It holds nothing that changes.log does not say, so it is never synced, and it goes with the process.
//
// Invariant: memory grows by 16 bytes per change.
//
// Thread safety: append() from one thread at a time, read() from any.
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace fusedbun::changes {

class ChangeHistory {
 public:
  /// Throws IoError (74).
  explicit ChangeHistory(const std::filesystem::path& run_dir);
  ~ChangeHistory();
  ChangeHistory(const ChangeHistory&) = delete;  // owns a file descriptor

  struct Entry {
    int64_t revision = 0;
    std::string text;  ///< any bytes, at least one
  };
  /// Revisions that are not there yet, in any order. Throws IoError: then none of them is there.
  void append(std::span<const Entry> entries);
  /// The text of one that is there. Throws IoError.
  std::string read(int64_t revision) const;

 private:
  struct Place {
    uint64_t offset = 0;
    uint64_t bytes = 0;  ///< 0: not there
  };

  int fd_ = -1;
  uint64_t size_ = 0;  ///< of the file; append() alone uses it
  mutable std::mutex mutex_;
  std::vector<Place> places_;  ///< [revision - 1]
};

}  // namespace fusedbun::changes
