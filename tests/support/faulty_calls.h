#pragma once
// The calls by which files reach the disk, recorded, counted or made to fail in this process: it defines them, and the program's
// own definitions go before libc's. While nothing is asked for they are libc's.
//
// Thread safety: counters may be read and calls made from any thread; set up while no other thread makes such calls.
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fusedbun::support {

enum class DiskCall { open, write, pread, fsync, close, rename, mkdir, unlink };

/// One call that succeeded, by whole paths.
struct DiskCallRecord {
  DiskCall call;
  std::string path;
  std::string to;          ///< of a rename
  bool creates = false;    ///< an open that makes a file
  bool exchanges = false;  ///< a rename of both names
};

class FaultyCalls {
 public:
  /// One for the process.
  static FaultyCalls& instance();

  /// Back to what libc does; nothing is recorded.
  void reset();
  void record() { recording_ = true; }
  const std::vector<DiskCallRecord>& records() const { return records_; }
  /// The `nth` next `call` (from 1) fails with `error`; 0: a write that writes only a part.
  void fail(DiskCall call, int nth, int error);
  bool has_failed() const { return failed_; }
  /// From now on renames that exchange two names fail with EINVAL, as on file systems that know none.
  void forbid_exchange() { exchange_forbidden_ = true; }
  /// The `nth` next call of any kind (from 1) is not made: the process kills itself.
  void kill_at(int64_t nth) { calls_left_ = nth; }
  /// fsync does nothing, for tests that do not cut the power.
  void skip_fsync() { fsync_skipped_ = true; }

  std::atomic<int64_t> bytes_read = 0;  ///< by pread

  /// For the definitions: what is to be done instead of the call; nothing: make it.
  struct Instead {
    int error = 0;
    bool short_write = false;
  };
  std::optional<Instead> before(DiskCall call);
  void after(DiskCallRecord record);
  bool is_recording() const { return recording_; }
  bool is_exchange_forbidden() const { return exchange_forbidden_; }
  bool is_fsync_skipped() const { return fsync_skipped_; }

 private:
  bool recording_ = false;
  bool exchange_forbidden_ = false;
  bool fsync_skipped_ = false;
  std::vector<DiskCallRecord> records_;
  DiskCall failing_ = DiskCall::open;
  int left_until_failure_ = 0;  ///< 0: none is to fail
  int error_ = 0;
  bool failed_ = false;
  int64_t calls_left_ = 0;  ///< 0: no kill
};

/// Undoes, at the end of a test, what it has asked for.
class FaultyCallsScope {
 public:
  FaultyCallsScope() { FaultyCalls::instance().reset(); }
  ~FaultyCallsScope() { FaultyCalls::instance().reset(); }
  FaultyCalls* operator->() const { return &FaultyCalls::instance(); }
};

}  // namespace fusedbun::support
