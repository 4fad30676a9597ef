#pragma once
// NcclSession: one NCCL communicator with its stream, its events, its watchdog and its one failure; what operations under way hold
// on to.
//
// Invariants: 1. After the first failure nothing is launched, and the watchdog aborts the NCCL communicator; who throws the failure has
// waited for that (at most 5 s), because memory may be freed then. 2. A group that was started is ended, whatever happened inside.
// 3. No lock is held while waiting or aborting, so a failure is never kept out. 4. Operations end in the order of their launches (one
// stream), so only the oldest is looked at.
//
// Thread safety: fail() and failure() any thread; the rest one thread at a time. Events may be recycled by any.
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/comm/nccl_api.h"

// Every code that NCCL and CUDA return passes here.
#define FUSEDBUN_NCCL(session, call) (session).check((call), #call)

namespace fusedbun::comm {

class NcclSession {
 public:
  /// An operation that was launched. Its event goes back to the session with the last reference.
  class Launched {
   public:
    Launched(NcclSession& session, std::string what, std::chrono::milliseconds timeout);
    ~Launched();
    Launched(const Launched&) = delete;  // owns its event

    const std::string& what() const { return what_; }

   private:
    friend NcclSession;
    NcclSession& session_;
    const std::string what_;
    const std::chrono::milliseconds timeout_;
    cudaEvent_t done_;
    std::chrono::steady_clock::time_point launched_at_;
  };

  /// Opens the NCCL communicator on options.device with `open`, which may leave it in progress.
  NcclSession(const NcclApi& api, const NcclOptions& options,
              const std::function<ncclResult_t(ncclComm_t* comm)>& open);
  /// Ends the communicator cleanly if nothing failed, within the deadline.
  ~NcclSession();
  NcclSession(const NcclSession&) = delete;  // owns device resources

  /// Enqueues one group after the producer stream's work so far.
  std::shared_ptr<const Launched> launch(
      const std::string& what, std::chrono::milliseconds timeout, Stream producer,
      const std::function<void(ncclComm_t, cudaStream_t)>& enqueue);
  /// Opens a communicator of some ranks; collective over this one. Null when color is NCCL_SPLIT_NOCOLOR.
  ncclComm_t split(int color, int key);
  void wait(const Launched& operation, std::chrono::milliseconds timeout);
  void wait_on(const Launched& operation, Stream stream);

  /// Returns at once; the watchdog aborts NCCL.
  void fail(Failure failure) noexcept;
  /// Until NCCL touches no memory any more; gives up after 5 s.
  void wait_for_abort() noexcept;
  std::optional<Failure> failure() const;
  /// Of the operations that are not seen to have ended.
  std::vector<std::string> pending_operations() const;

  // Every return code passes one of these; they throw DeviceError, or PeerLostError when NCCL blames a peer.
  void check(ncclResult_t result, const char* call) const;
  void check(cudaError_t result, const char* call) const;

  const NcclApi& api() const { return api_; }
  const NcclOptions& options() const { return options_; }
  /// One byte of device memory for barriers.
  void* scratch() const { return scratch_; }

 private:
  class OnDevice;
  using Lock = std::unique_lock<std::mutex>;

  std::string prefix() const;
  std::string advice_on_memory() const;
  [[noreturn]] void raise(const std::string& what, ncclResult_t result) const;
  [[noreturn]] void fail_and_throw(const Error& error);
  cudaEvent_t take_event();
  void settle(Lock& lock, ncclComm_t comm, const std::string& what,
              std::chrono::milliseconds timeout);
  void run_group(const std::function<void(ncclComm_t, cudaStream_t)>& enqueue);
  void release() noexcept;

  // The watchdog's thread.
  void watch();
  std::optional<Failure> look(Lock& lock);
  void stop_watchdog() noexcept;

  /// Operations that have ended go, oldest first. Any thread, without the lock. Throws DeviceError.
  void forget_ended();

  const NcclApi& api_;
  const NcclOptions options_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t produced_ = nullptr;
  void* scratch_ = nullptr;

  mutable std::mutex mutex_;  // guards what follows; never held while anything waits
  std::condition_variable changed_;
  ncclComm_t comm_ = nullptr;
  std::optional<Failure> failure_;
  bool aborting_ = false;   ///< comm_ was taken to be aborted, which lasts
  bool connected_ = false;  ///< the watchdog looks
  bool closing_ = false;
  std::deque<std::shared_ptr<const Launched>> unfinished_;  ///< the oldest first
  std::chrono::steady_clock::time_point
      progressed_at_;  ///< when an operation was last seen to have ended

  std::mutex events_mutex_;
  std::vector<cudaEvent_t> free_events_;
  std::thread watchdog_;
};

}  // namespace fusedbun::comm
