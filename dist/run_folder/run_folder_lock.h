#pragma once
// RunFolderLock: one job per run folder. Rank 0 holds an flock on <run_dir>/run.lock from start to
// end; the kernel drops it when the process dies, however it dies, so there is nothing stale to
// clean up.
//
// Needs no gRPC headers. Thread safety: construct and destroy on one thread.
#include <filesystem>
#include <string>
#include <vector>

namespace fusedbun::run_folder {

class RunFolderLock {
 public:
  /// Makes the folder (0700) if it is missing. Throws UnavailableError (69) naming the pid and host
  /// that hold it; PermissionError (77) if the folder is world-writable; IoError.
  explicit RunFolderLock(const std::filesystem::path& run_dir);
  ~RunFolderLock();
  RunFolderLock(const RunFolderLock&) = delete;  // owns the lock's file descriptor
  RunFolderLock& operator=(const RunFolderLock&) = delete;

  /// For the user: the file system has no locks, so a second job would not be noticed (Lustre without -o flock, NFS without its
  /// lock service); other users can write to the folder.
  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  int fd_ = -1;
  std::vector<std::string> warnings_;
};

}  // namespace fusedbun::run_folder
