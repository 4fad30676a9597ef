#include "fusedbun/dist/control/job_events.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>

namespace fusedbun::control {

void JobEvents::add(v1::JobEvent event) {
  *event.mutable_time() = google::protobuf::util::TimeUtil::GetCurrentTime();
  const std::lock_guard lock(mutex_);
  event.set_sequence(++newest_);
  events_.push_back(std::move(event));
  if (events_.size() > kKept) events_.pop_front();
  added_.notify_all();
}

void JobEvents::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  added_.notify_all();
}

JobEvents::Page JobEvents::after(int64_t sequence, std::chrono::milliseconds wait) const {
  std::unique_lock lock(mutex_);
  added_.wait_for(lock, wait, [&] { return newest_ > std::max(sequence, before_) || ended_; });
  const int64_t oldest = newest_ - static_cast<int64_t>(events_.size()) + 1;
  Page page{.events = {}, .oldest = oldest};
  if (sequence > newest_ || (sequence != 0 && sequence < oldest - 1)) {
    page.outcome = Outcome::gone;
    return page;
  }
  const auto first = events_.begin() + std::max<int64_t>(sequence + 1 - oldest, 0);
  const auto count = std::min<std::ptrdiff_t>(events_.end() - first, kPageMax);
  page.events.assign(first, first + count);
  if (count > 0) {
    page.outcome = Outcome::events;
  } else if (ended_) {
    page.outcome = Outcome::ended;
  }
  return page;
}

}  // namespace fusedbun::control
