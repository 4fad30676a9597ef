#pragma once
// NcclSession: one NCCL communicator with its stream, its events and its one failure; what operations under way hold
// on to.
//
// Invariants: 1. The first failure aborts the NCCL communicator; nothing is launched after it. 2. A group that was
// started is ended, whatever happened inside. 3. No lock is held while waiting, so abort() is never kept out.
//
// Thread safety: fail() and failure() any thread; the rest one thread at a time.
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "fusedbun/dist/comm/failure.h"
#include "fusedbun/dist/comm/nccl_api.h"

// Every code that NCCL and CUDA return passes here.
#define FUSEDBUN_NCCL(session, call) (session).check((call), #call)

namespace fusedbun::comm {

class NcclSession {
 public:
  /// Opens the NCCL communicator on options.device with `open`, which may leave it in progress.
  NcclSession(const NcclApi& api, const NcclOptions& options,
              const std::function<ncclResult_t(ncclComm_t* comm)>& open);
  /// Ends the communicator in peace if nothing failed, within the deadline.
  ~NcclSession();
  NcclSession(const NcclSession&) = delete;  // owns device resources

  /// Enqueues one group after the producer stream's work so far, and returns the event that marks its end.
  cudaEvent_t launch(const std::string& what, std::chrono::milliseconds timeout,
                     const std::function<void(ncclComm_t, cudaStream_t)>& enqueue);
  /// Opens a communicator of some ranks; collective over this one. Null when color is NCCL_SPLIT_NOCOLOR.
  ncclComm_t split(int color, int key);
  void wait(cudaEvent_t done, const std::string& what, std::chrono::milliseconds timeout);
  void wait_on(cudaEvent_t done, const std::string& what, Stream stream);
  void recycle(cudaEvent_t event);

  void fail(Failure failure) noexcept;
  std::optional<Failure> failure() const;

  // Every return code passes one of these; they throw DeviceError, or PeerLostError when NCCL blames a peer.
  void check(ncclResult_t result, const char* call) const;
  void check(cudaError_t result, const char* call) const;

  const NcclApi& api() const { return api_; }
  const NcclOptions& options() const { return options_; }
  /// One byte of device memory for barriers.
  void* scratch() const { return scratch_; }

 private:
  class OnDevice;
  std::string prefix() const;
  cudaEvent_t take_event();
  void settle(std::unique_lock<std::mutex>& lock, ncclComm_t comm, const std::string& what,
              std::chrono::milliseconds timeout);
  void run_group(const std::function<void(ncclComm_t, cudaStream_t)>& enqueue);
  void release() noexcept;

  const NcclApi& api_;
  const NcclOptions options_;
  mutable std::mutex mutex_;  // guards comm_ and failure_
  ncclComm_t comm_ = nullptr;
  std::optional<Failure> failure_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t produced_ = nullptr;
  void* scratch_ = nullptr;
  std::vector<cudaEvent_t> free_events_;
};

}  // namespace fusedbun::comm
