#pragma once
// HostWindow: memory that the ranks of one host share, and the events by which they wait for one another. A capability
// beside the backends: with it a gradient is written once, where every rank reads it, and a new row once, where every
// rank uses it.
//
//   region(r)   one per rank: rank r writes, all read           (gradients)
//   shared()    one for all: each rank writes its own part      (the host's one replica of the parameters)
//   events      "rank r has got to event e of round n": counters in the window, waited for with a futex
//
// The memory has no name in any file system: rank 0 makes an anonymous file (memfd) and the others open it through
// /proc/<pid>/fd. So nothing is left behind however the ranks end, and the size of /dev/shm (64 MiB in most
// containers) does not matter.
//
// Invariants: 1. The rounds that a rank posts of an event strictly grow; it may leave some out, and a wait for a round
// ends with that round or a later one. 2. What a rank wrote before post() is seen by a rank that waited for it. 3. A wait
// ends with the event, with PeerLostError when a rank's process is gone or a rank called abort(), with RankAsideError
// when a rank stepped aside before the event, with the failure of the communicator it was opened over, or with TimeoutError. 4.
// That communicator outlives it. 5. No memory is mapped before all ranks know that it is the same, and that it cannot
// shrink.
//
// Thread safety: post and wait from one thread per rank; abort from any.
#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

struct WindowSize {
  int64_t region_bytes = 0;  ///< of each rank's region
  int64_t shared_bytes = 0;  ///< of the part shared by all
  int events = 0;            ///< how many different events there are
};

/// Another rank stepped aside, and this one did not, but waits for it.
class RankAsideError : public ConfigError {
 public:
  using ConfigError::ConfigError;
};

class HostWindow : public std::enable_shared_from_this<HostWindow> {
 public:
  struct Opened {
    std::shared_ptr<HostWindow> window;  ///< null: the ranks go without
    std::string reason;  ///< why not, the same on every rank: "rank 2 is on another host"
  };
  /// Collective over `host`; all ranks get a window or none does. Never throws for what the machine refuses.
  static Opened open(Communicator& host, const WindowSize& size, std::chrono::milliseconds timeout);
  ~HostWindow();
  HostWindow(const HostWindow&) = delete;  // owns a mapping

  std::byte* region(int rank) const;
  std::byte* shared() const;

  /// This rank has got to `event` of `round` (from 1 on, growing).
  void post(int event, uint32_t round);
  /// Until every rank has got there.
  Work when_all(int event, uint32_t round);

  /// Every wait on every rank fails soon with PeerLostError.
  void abort() noexcept;
  /// This rank does something that all ranks must do, and for which it may need the others: "finish() was called after step 9". Ranks
  /// that have not been aside as often, and wait for what this one has not posted, fail soon with a RankAsideError that names it and
  /// the reason, of which at most 400 bytes are kept.
  void step_aside(const std::string& reason) noexcept;

 private:
  struct Header;
  struct RankCell;
  HostWindow(void* memory, size_t bytes, const WindowSize& size, Communicator& host,
             std::chrono::milliseconds timeout);
  std::atomic<uint32_t>& counter(int event, int rank) const;
  void wait(int event, uint32_t round, std::chrono::milliseconds timeout) const;
  void require_unbroken() const;
  void require_alive(int rank) const;
  void require_not_aside(int rank, std::atomic<uint32_t>& word, uint32_t round) const;
  RankCell& cell(int rank) const;
  void watch_processes();
  friend class WindowWait;

  std::byte* memory_;
  size_t bytes_;
  WindowSize size_;
  Communicator& host_;
  int rank_;
  int world_size_;
  std::chrono::milliseconds timeout_;
  std::vector<int> processes_;  // [rank] -> its pidfd, -1 where the kernel has none
};

}  // namespace fusedbun::comm
