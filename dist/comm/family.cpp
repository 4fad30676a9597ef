#include "fusedbun/dist/comm/family.h"

#include <utility>

namespace fusedbun::comm {

void Family::add(Member& member) {
  const std::lock_guard lock(members_mutex_);
  members_.insert(&member);
  if (const auto broken = failure()) member.break_with(*broken);
}

void Family::remove(Member& member) {
  const std::lock_guard lock(members_mutex_);
  members_.erase(&member);
}

void Family::fail(const Failure& failure) {
  // Held from before the failure can be seen: who sees it may destroy its communicator at once, and the peers are to hear first.
  const std::lock_guard members_lock(members_mutex_);
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = failure;
  }
  for (Member* member : members_) member->break_with(failure);
}

std::optional<Failure> Family::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::vector<std::string> Family::pending_operations() const {
  const std::lock_guard lock(members_mutex_);
  std::vector<std::string> operations;
  for (const Member* member : members_) {
    for (std::string& operation : member->pending_operations())
      operations.push_back(std::move(operation));
  }
  return operations;
}

int64_t Family::next_group() const {
  const std::lock_guard lock(mutex_);
  return next_group_;
}

void Family::set_next_group(int64_t number) {
  const std::lock_guard lock(mutex_);
  next_group_ = number;
}

}  // namespace fusedbun::comm
