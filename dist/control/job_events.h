#pragma once
// JobEvents: what happened to the job, for its watchers. A ring of the newest events; a reader that remembers the last
// sequence it saw goes on from there without a gap, or learns that there is one.
//
// Thread safety: all members, from any thread. add() never waits for a reader.
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "fusedbun/control/v1/control.pb.h"

namespace fusedbun::control {

class JobEvents {
 public:
  static constexpr size_t kKept = 1024;

  /// Before the first event. Each attempt of a run has numbers of its own: a reader of an earlier one learns that its events
  /// are gone. The first attempt counts from 1.
  void begin_attempt(int64_t attempts_before) { newest_ = before_ = attempts_before << 32; }
  /// Sequence and time are filled in.
  void add(v1::JobEvent event);
  /// Nothing more will come.
  void end();

  enum class Outcome {
    events,   ///< at least one
    nothing,  ///< yet
    ended,    ///< and nothing more will come
    gone,     ///< the events after this sequence are no longer kept, or it is none that was given
  };
  struct Page {
    Outcome outcome = Outcome::nothing;
    std::vector<v1::JobEvent> events;  ///< in order of sequence, at most kPageMax
    int64_t oldest = 0;                ///< that is kept
  };
  /// Waits up to `wait` for what comes after `sequence`; 0 means from the oldest that is kept.
  Page after(int64_t sequence, std::chrono::milliseconds wait) const;

 private:
  static constexpr size_t kPageMax = 64;

  mutable std::mutex mutex_;
  mutable std::condition_variable added_;
  std::deque<v1::JobEvent> events_;
  int64_t before_ = 0;  ///< the first event's sequence is one more
  int64_t newest_ = 0;
  bool ended_ = false;
};

}  // namespace fusedbun::control
