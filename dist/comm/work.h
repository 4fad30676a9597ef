#pragma once
// Work: one operation under way. Move-only; waited for by the host (with a deadline) or by a device stream.
//
// A Work must be waited for before its buffers go. Destroying one that was not waited for is our bug (assert), unless
// an exception is on its way through or the communicator was aborted.
//
// Thread safety: none; it belongs to the thread that started the operation.
#include <chrono>
#include <memory>

namespace fusedbun::comm {

/// A CUDA stream (cudaStream_t). Cannot be made from 0 or nullptr: the default stream is never meant by accident.
class Stream {
 public:
  explicit Stream(void* handle) : handle_(handle) {}
  Stream(int) = delete;
  Stream(std::nullptr_t) = delete;
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

using Clock = std::chrono::steady_clock;

/// What a backend implements.
class PendingOperation {
 public:
  virtual ~PendingOperation() = default;
  /// When it was done, as far as the backend knows; after wait().
  virtual Clock::time_point ended_at() const { return Clock::now(); }
  /// Blocks until done. Throws PeerLostError, TimeoutError, or DeviceError.
  virtual void wait(std::chrono::milliseconds timeout) = 0;
  /// Makes later work on `stream` wait for the operation; on host backends the same as wait().
  virtual void wait_on(Stream stream, std::chrono::milliseconds timeout) = 0;
  /// True if the communicator was aborted, so that the operation may be dropped.
  virtual bool may_drop() const noexcept = 0;
};

class Work {
 public:
  /// An operation that is already done.
  Work() = default;
  Work(std::unique_ptr<PendingOperation> operation, std::chrono::milliseconds timeout)
      : operation_(std::move(operation)), timeout_(timeout) {}
  Work(Work&&) noexcept = default;
  Work& operator=(Work&& other) noexcept;
  Work(const Work&) = delete;  // one operation is waited for once
  ~Work();

  /// Blocks the host until done, at most the communicator's timeout. After it (even if it throws) the Work is empty.
  /// Returns when it was done, which may be long ago; a backend that does not know says now.
  Clock::time_point wait();
  /// Makes `stream` wait; the host does not, where the backend can.
  void wait_on(Stream stream);
  bool pending() const { return operation_ != nullptr; }

 private:
  std::unique_ptr<PendingOperation> operation_;
  std::chrono::milliseconds timeout_{0};
};

}  // namespace fusedbun::comm
