#pragma once
// The calls by which changes.log reaches the disk, made slow or failing in this process: it defines fdatasync and ftruncate, and
// the program's own definitions go before libc's. Everything else of the log is real.
//
// Thread safety: all of it.
#include <atomic>
#include <chrono>

namespace fusedbun::changes {

class DiskFaults {
 public:
  /// One for the process.
  static DiskFaults& instance();

  std::atomic<int> sync_error = 0;      ///< errno of fdatasync; 0: it works
  std::atomic<int> truncate_error = 0;  ///< errno of ftruncate
  std::atomic<int> sync_us_max =
      0;  ///< fdatasync takes up to this long, each time another part of it
  std::atomic<bool> hangs = false;  ///< fdatasync does not return while this is true
  std::atomic<int> hanging = 0;     ///< calls that do not return now

  void reset();
};

}  // namespace fusedbun::changes
