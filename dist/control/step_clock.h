#pragma once
// StepClock: do steps still finish? A job stalls when no step has ended for longer than max(stall_timeout, 10 median steps),
// so a job of slow steps is not called stalled and one of quick steps is found soon.
//
// Pure: the time is an argument, on any steady clock. Thread safety: none.
#include <array>
#include <chrono>
#include <cstddef>
#include <optional>

namespace fusedbun::control {

class StepClock {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  explicit StepClock(Duration stall_timeout) : stall_timeout_(stall_timeout) {}

  /// Returns how long the step took; 0 for the first.
  Duration step_ended(Time now);
  /// False before the first step has ended.
  bool is_progressing(Time now) const;
  /// How long the job may go without a step's end.
  Duration limit() const;

 private:
  static constexpr size_t kStepsKept = 32;
  static constexpr int kMediansAllowed = 10;

  Duration stall_timeout_;
  std::array<Duration, kStepsKept> recent_{};  ///< a ring of step times
  size_t count_ = 0;                           ///< step times ever taken
  std::optional<Time> last_end_;
};

}  // namespace fusedbun::control
