#include "fusedbun/dist/job/failure_relay.h"

#include <csignal>

namespace fusedbun {

FailureRelay::~FailureRelay() {
  stop();
}

void FailureRelay::tell(const comm::Failure& failure) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = failure;
  }
  changed_.notify_all();
}

void FailureRelay::start(health::Heartbeat& heartbeat, comm::Communicator& host,
                         std::chrono::milliseconds patience) {
  thread_ = std::thread([&heartbeat, &host, patience, this] { run(heartbeat, host, patience); });
}

void FailureRelay::stop() noexcept {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void FailureRelay::run(health::Heartbeat& heartbeat, comm::Communicator& host,
                       std::chrono::milliseconds patience) {
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the program's own threads
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || failure_; });
  if (failure_ && failure_->code == ExitCode::peer_lost) {
    const auto end = std::chrono::steady_clock::now() + patience;
    constexpr std::chrono::milliseconds kLook{20};
    while (!stopping_ && !heartbeat.lost() && std::chrono::steady_clock::now() < end) {
      changed_.wait_for(lock, kLook);
    }
  }
  if (stopping_) return;
  const comm::Failure failure = *failure_;
  lock.unlock();
  heartbeat.fail(static_cast<int>(failure.code), failure.text);  // nothing if a loss is known
  host.abort(failure.text);
}

}  // namespace fusedbun
