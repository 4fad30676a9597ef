#pragma once
// StepClock: do steps still finish? A job stalls when no step has ended for longer than max(stall time-out, 10 median
// steps), so a job of slow steps is not called stalled and one of quick steps is found soon.
//
// Pure: the time is an argument, microseconds of any steady clock. Thread safety: none.
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace fusedbun::plan {

class StepClock {
 public:
  explicit StepClock(int64_t stall_us) : stall_us_(stall_us) {}

  /// Returns how long the step took; 0 for the first.
  int64_t step_ended(int64_t now_us) { return steps_ended(1, now_us); }
  /// Several have ended since the last call; returns the mean of their times.
  int64_t steps_ended(int64_t steps, int64_t now_us);
  /// Nobody looked at the clock for this long: it does not count.
  void pause(int64_t paused_us, int64_t now_us);

  /// False before the first step has ended.
  bool is_progressing(int64_t now_us) const;
  /// Steps have ended, but none for too long.
  bool is_stalled(int64_t now_us) const { return last_end_us_ && !is_progressing(now_us); }
  /// How long the job may go without a step's end.
  int64_t limit_us() const;

 private:
  static constexpr size_t kStepsKept = 32;
  static constexpr int kMediansAllowed = 10;

  int64_t stall_us_;
  std::array<int64_t, kStepsKept> recent_us_{};  ///< a ring of step times
  size_t count_ = 0;                             ///< step times ever taken
  std::optional<int64_t> last_end_us_;
};

}  // namespace fusedbun::plan
