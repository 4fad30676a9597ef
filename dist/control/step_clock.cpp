#include "fusedbun/dist/control/step_clock.h"

#include <algorithm>

namespace fusedbun::control {

StepClock::Duration StepClock::step_ended(Time now) {
  const Duration time = last_end_ ? now - *last_end_ : Duration::zero();
  if (last_end_) recent_[count_++ % kStepsKept] = time;
  last_end_ = now;
  return time;
}

bool StepClock::is_progressing(Time now) const {
  return last_end_ && now - *last_end_ <= limit();
}

StepClock::Duration StepClock::limit() const {
  const size_t kept = std::min(count_, kStepsKept);
  if (kept == 0) return stall_timeout_;
  auto sorted = recent_;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(kept / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<std::ptrdiff_t>(kept));
  return std::max(stall_timeout_, kMediansAllowed * *middle);
}

}  // namespace fusedbun::control
