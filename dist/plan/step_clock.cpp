#include "fusedbun/dist/plan/step_clock.h"

#include <algorithm>

namespace fusedbun::plan {

int64_t StepClock::steps_ended(int64_t steps, int64_t now_us) {
  const int64_t step_us = last_end_us_ ? (now_us - *last_end_us_) / steps : 0;
  if (last_end_us_) recent_us_[count_++ % kStepsKept] = step_us;
  last_end_us_ = now_us;
  return step_us;
}

void StepClock::pause(int64_t paused_us, int64_t now_us) {
  if (last_end_us_) last_end_us_ = std::min(*last_end_us_ + paused_us, now_us);
}

bool StepClock::is_progressing(int64_t now_us) const {
  return last_end_us_ && now_us - *last_end_us_ <= limit_us();
}

int64_t StepClock::limit_us() const {
  const size_t kept = std::min(count_, kStepsKept);
  if (kept == 0) return stall_us_;
  auto sorted = recent_us_;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(kept / 2);
  std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<std::ptrdiff_t>(kept));
  return std::max(stall_us_, kMediansAllowed * *middle);
}

}  // namespace fusedbun::plan
