#pragma once
// FailureRelay: from NCCL's watchdog, which finds that an operation on the GPU does not end, to the heartbeat, which tells the other
// ranks and ends this process if it does not leave by itself: its main thread may sit in cudaStreamSynchronize or in a collective of
// the host, where no exception reaches it.
//
// Where NCCL blames a peer, the ranks are first given time to find out which one is lost, because that is the better answer.
//
// Thread safety: tell() by any thread, at any time; the rest by the job's thread.
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/health/heartbeat.h"

namespace fusedbun {

class FailureRelay {
 public:
  FailureRelay() = default;
  ~FailureRelay();                             ///< stop()
  FailureRelay(const FailureRelay&) = delete;  // owns a thread

  /// Returns at once. The first failure is passed on; one that comes before start() then.
  void tell(const comm::Failure& failure);
  /// Both outlive stop(). `patience`: how long the ranks may take to find a lost peer.
  void start(health::Heartbeat& heartbeat, comm::Communicator& host,
             std::chrono::milliseconds patience);
  /// Nothing is passed on after it.
  void stop() noexcept;

 private:
  void run(health::Heartbeat& heartbeat, comm::Communicator& host,
           std::chrono::milliseconds patience);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<comm::Failure> failure_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace fusedbun
