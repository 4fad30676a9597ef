#include "fusedbun/dist/comm/nccl_session.h"

#include <thread>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

constexpr std::chrono::microseconds kPollPause{50};

// "api_.comm_split(...)" is reported as "comm_split".
std::string function_of(const char* call) {
  const std::string text(call);
  const size_t end = text.find('(');
  const size_t begin = text.find_last_of(".>", end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - begin - 1);
}

}  // namespace

// The calling thread's current device is the session's while it lives.
class NcclSession::OnDevice {
 public:
  explicit OnDevice(const NcclSession& session) : session_(session) {
    session.check(session.api_.cuda_get_device(&before_), "cuda_get_device(");
    if (before_ == session.options_.device) return;
    session.check(session.api_.cuda_set_device(session.options_.device), "cuda_set_device(");
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) (void)session_.api_.cuda_set_device(before_);
  }
  OnDevice(const OnDevice&) = delete;  // restores once

 private:
  const NcclSession& session_;
  int before_ = 0;
  bool changed_ = false;
};

NcclSession::NcclSession(const NcclApi& api, const NcclOptions& options,
                         const std::function<ncclResult_t(ncclComm_t* comm)>& open)
    : api_(api), options_(options) {
  try {
    const OnDevice device(*this);
    int least = 0;
    int greatest = 0;
    FUSEDBUN_NCCL(*this, api_.cuda_stream_priority_range(&least, &greatest));
    FUSEDBUN_NCCL(*this, api_.cuda_stream_create(&stream_, cudaStreamNonBlocking, greatest));
    FUSEDBUN_NCCL(*this, api_.cuda_event_create(&produced_, cudaEventDisableTiming));
    FUSEDBUN_NCCL(*this, api_.cuda_malloc(&scratch_, 1));
    std::unique_lock lock(mutex_);
    FUSEDBUN_NCCL(*this, open(&comm_));
    settle(lock, comm_, "connecting", options_.timeout);
  } catch (const Error& error) {
    fail({error.code(), error.what()});
    release();
    throw;
  }
}

NcclSession::~NcclSession() {
  try {
    const OnDevice device(*this);
    std::unique_lock lock(mutex_);
    if (comm_ != nullptr) {
      FUSEDBUN_NCCL(*this, api_.comm_finalize(comm_));
      settle(lock, comm_, "disconnecting", options_.timeout);
      FUSEDBUN_NCCL(*this, api_.comm_destroy(std::exchange(comm_, nullptr)));
    }
  } catch (const Error& error) {
    fail({error.code(), error.what()});
  }
  release();
}

void NcclSession::release() noexcept {
  for (const cudaEvent_t event : free_events_) (void)api_.cuda_event_destroy(event);
  if (produced_ != nullptr) (void)api_.cuda_event_destroy(produced_);
  if (scratch_ != nullptr) (void)api_.cuda_free(scratch_);
  if (stream_ != nullptr) (void)api_.cuda_stream_destroy(stream_);
}

cudaEvent_t NcclSession::launch(const std::string& what, std::chrono::milliseconds timeout,
                                const std::function<void(ncclComm_t, cudaStream_t)>& enqueue) {
  cudaEvent_t done = nullptr;
  try {
    const OnDevice device(*this);
    std::unique_lock lock(mutex_);
    if (failure_) failure_->raise();
    done = take_event();
    settle(lock, comm_, what, timeout);
    const auto producer = static_cast<cudaStream_t>(options_.producer_stream().handle());
    FUSEDBUN_NCCL(*this, api_.cuda_event_record(produced_, producer));
    FUSEDBUN_NCCL(*this, api_.cuda_stream_wait_event(stream_, produced_, 0));
    run_group(enqueue);
    settle(lock, comm_, what, timeout);  // enqueued, not done: only then does an event mark its end
    FUSEDBUN_NCCL(*this, api_.cuda_event_record(done, stream_));
    return done;
  } catch (const Error& error) {
    if (done != nullptr) recycle(done);
    fail({error.code(), error.what()});
    throw;
  }
}

void NcclSession::run_group(const std::function<void(ncclComm_t, cudaStream_t)>& enqueue) {
  FUSEDBUN_NCCL(*this, api_.group_start());
  try {
    enqueue(comm_, stream_);
  } catch (...) {
    (void)api_.group_end();  // or every later call of this thread would still be inside the group
    throw;
  }
  FUSEDBUN_NCCL(*this, api_.group_end());
}

ncclComm_t NcclSession::split(int color, int key) {
  try {
    const OnDevice device(*this);
    std::unique_lock lock(mutex_);
    if (failure_) failure_->raise();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    ncclComm_t part = nullptr;
    FUSEDBUN_NCCL(*this, api_.comm_split(comm_, color, key, &part, &config));
    settle(lock, comm_, "making a group", options_.timeout);
    return part;
  } catch (const Error& error) {
    fail({error.code(), error.what()});
    throw;
  }
}

// NCCL runs non-blocking: a call may be under way after it returned. Waits until it is not, with the lock released
// between looks, so that abort() can come in.
void NcclSession::settle(std::unique_lock<std::mutex>& lock, ncclComm_t comm,
                         const std::string& what, std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    if (failure_) failure_->raise();
    ncclResult_t state = ncclSuccess;
    FUSEDBUN_NCCL(*this, api_.comm_get_async_error(comm, &state));
    if (state != ncclInProgress) return check(state, what.c_str());
    FUSEDBUN_REQUIRE(std::chrono::steady_clock::now() < deadline, TimeoutError,
                     prefix() + what + " was not under way after " +
                         std::to_string(timeout.count()) +
                         " ms: a rank is missing, stopped or unreachable");
    lock.unlock();
    std::this_thread::sleep_for(kPollPause);
    lock.lock();
  }
}

void NcclSession::wait(cudaEvent_t done, const std::string& what,
                       std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  try {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (failure_) failure_->raise();
        ncclResult_t state = ncclSuccess;
        FUSEDBUN_NCCL(*this, api_.comm_get_async_error(comm_, &state));
        if (state != ncclInProgress) check(state, what.c_str());
      }
      const cudaError_t reached = api_.cuda_event_query(done);
      if (reached == cudaSuccess) return;
      if (reached != cudaErrorNotReady) check(reached, what.c_str());
      FUSEDBUN_REQUIRE(std::chrono::steady_clock::now() < deadline, TimeoutError,
                       prefix() + what + " was not done after " + std::to_string(timeout.count()) +
                           " ms: a rank is stopped, late or unreachable");
      std::this_thread::sleep_for(kPollPause);
    }
  } catch (const Error& error) {
    fail({error.code(), error.what()});
    throw;
  }
}

void NcclSession::wait_on(cudaEvent_t done, const std::string& what, Stream stream) {
  if (const auto broken = failure()) broken->raise();
  try {
    check(api_.cuda_stream_wait_event(static_cast<cudaStream_t>(stream.handle()), done, 0),
          what.c_str());
  } catch (const Error& error) {
    fail({error.code(), error.what()});
    throw;
  }
}

cudaEvent_t NcclSession::take_event() {
  if (free_events_.empty()) {
    cudaEvent_t event = nullptr;
    FUSEDBUN_NCCL(*this, api_.cuda_event_create(&event, cudaEventDisableTiming));
    return event;
  }
  const cudaEvent_t event = free_events_.back();
  free_events_.pop_back();
  return event;
}

void NcclSession::recycle(cudaEvent_t event) {
  free_events_.push_back(event);
}

void NcclSession::fail(Failure failure) noexcept {
  const std::lock_guard lock(mutex_);
  if (failure_) return;
  failure_ = std::move(failure);
  if (comm_ != nullptr) (void)api_.comm_abort(std::exchange(comm_, nullptr));
}

std::optional<Failure> NcclSession::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::string NcclSession::prefix() const {
  return "nccl: rank " + std::to_string(options_.rank) + " of " + std::to_string(options_.size) +
         " on GPU " + std::to_string(options_.device) + ": ";
}

void NcclSession::check(ncclResult_t result, const char* call) const {
  if (result == ncclSuccess || result == ncclInProgress) return;
  std::string text = prefix() + function_of(call) + " failed: " + api_.get_error_string(result);
  const char* const detail = api_.get_last_error(nullptr);
  if (detail != nullptr && *detail != '\0') text.append(" (").append(detail).append(")");
  if (result == ncclRemoteError) throw PeerLostError(text);
  throw DeviceError(text);
}

void NcclSession::check(cudaError_t result, const char* call) const {
  FUSEDBUN_REQUIRE(result == cudaSuccess, DeviceError,
                   prefix() + function_of(call) + " failed: " + api_.cuda_get_error_string(result));
}

}  // namespace fusedbun::comm
