#pragma once
// RunFolderLock: one job per run folder. Rank 0 holds an flock on <run_dir>/run.lock from start to
// end; the kernel drops it when the process dies, however it dies, so there is nothing stale to
// clean up.
//
// Needs no gRPC headers. Thread safety: construct and destroy on one thread.
#include <filesystem>

namespace fusedbun::run_folder {

class RunFolderLock {
 public:
  /// Makes the folder (0700) if it is missing. Throws UnavailableError (69) naming the pid and host
  /// that hold it; IoError.
  explicit RunFolderLock(const std::filesystem::path& run_dir);
  ~RunFolderLock();
  RunFolderLock(const RunFolderLock&) = delete;  // owns the lock's file descriptor
  RunFolderLock& operator=(const RunFolderLock&) = delete;

 private:
  int fd_ = -1;
};

}  // namespace fusedbun::run_folder
