#pragma once
// ChangeHistory: the changes that the ledger has forgotten, as clients see them, in a file without a name in the run folder. It
// holds nothing that changes.log does not say, so it is never synced, and it goes with the process.
//
// Invariant: memory grows by 16 bytes per change.
//
// Thread safety: append() from one thread at a time, read() from any.
#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <vector>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::control {

class ChangeHistory {
 public:
  /// Throws IoError (74).
  explicit ChangeHistory(const std::filesystem::path& run_dir);
  ~ChangeHistory();
  ChangeHistory(const ChangeHistory&) = delete;  // owns a file descriptor

  /// Changes that are not there yet, by their revision; in any order. Throws IoError: then none of them is there.
  void append(std::span<const v1::Change> changes);
  /// One that is there. Throws IoError.
  v1::Change read(int64_t revision) const;

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

}  // namespace fusedbun::control
