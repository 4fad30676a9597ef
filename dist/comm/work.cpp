#include "fusedbun/dist/comm/work.h"

#include <exception>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

// While an exception unwinds the stack, operations under way are dropped: there is nobody left to
// wait for them.
void require_droppable(const PendingOperation* operation) {
  FUSEDBUN_ASSERT(
      operation == nullptr || operation->may_drop() || std::uncaught_exceptions() > 0,
      "a Work was destroyed before it was waited for, so its buffers may go while they are in use");
}

}  // namespace

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    require_droppable(operation_.get());
    operation_ = std::move(other.operation_);
    timeout_ = other.timeout_;
  }
  return *this;
}

Work::~Work() {
  require_droppable(operation_.get());
}

Clock::time_point Work::wait() {
  const auto operation = std::move(operation_);
  if (!operation) return Clock::now();
  operation->wait(timeout_);
  return operation->ended_at();
}

void Work::wait_on(Stream stream) {
  if (const auto operation = std::move(operation_)) operation->wait_on(stream, timeout_);
}

}  // namespace fusedbun::comm
