#include "fusedbun/dist/comm/nccl_session.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <utility>

#include "fusedbun/core/error.h"

namespace fusedbun::comm {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kPollPause{50};      // of a host that waits
constexpr std::chrono::milliseconds kWatchInterval{20};  // of the watchdog
constexpr std::chrono::seconds kAbortPatience{5};

// "api_.comm_split(...)" is reported as "comm_split".
std::string function_of(const char* call) {
  const std::string text(call);
  const size_t end = text.find('(');
  const size_t begin = text.find_last_of(".>", end);
  return text.substr(begin == std::string::npos ? 0 : begin + 1, end - begin - 1);
}

std::string overdue_text(const std::string& oldest, std::chrono::milliseconds waited,
                         size_t behind) {
  return oldest + " was not done after " + std::to_string(waited.count()) +
         " ms: a rank is stopped, late or unreachable" +
         (behind == 0 ? "" : " (" + std::to_string(behind) + " more operation(s) wait behind it)");
}

std::string gibibytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
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

NcclSession::Launched::Launched(NcclSession& session, std::string what,
                                std::chrono::milliseconds timeout)
    : session_(session),
      what_(std::move(what)),
      timeout_(timeout),
      done_(session.take_event()),
      launched_at_(SteadyClock::now()) {}

NcclSession::Launched::~Launched() {
  const std::lock_guard lock(session_.events_mutex_);
  session_.free_events_.push_back(done_);
}

NcclSession::NcclSession(const NcclApi& api, const NcclOptions& options,
                         const std::function<ncclResult_t(ncclComm_t* comm)>& open)
    : api_(api), options_(options) {
  watchdog_ = std::thread([this] { watch(); });
  try {
    const OnDevice device(*this);
    int least = 0;
    int greatest = 0;
    FUSEDBUN_NCCL(*this, api_.cuda_stream_priority_range(&least, &greatest));
    FUSEDBUN_NCCL(*this, api_.cuda_stream_create(&stream_, cudaStreamNonBlocking, greatest));
    FUSEDBUN_NCCL(*this, api_.cuda_event_create(&produced_, cudaEventDisableTiming));
    FUSEDBUN_NCCL(*this, api_.cuda_malloc(&scratch_, 1));
    Lock lock(mutex_);
    FUSEDBUN_NCCL(*this, open(&comm_));
    settle(lock, comm_, "connecting", options_.timeout);
    connected_ = true;
  } catch (const Error& error) {
    fail({error.code(), error.what()});
    stop_watchdog();
    release();
    throw;
  }
}

NcclSession::~NcclSession() {
  try {
    const OnDevice device(*this);
    Lock lock(mutex_);
    if (!failure_) {
      FUSEDBUN_NCCL(*this, api_.comm_finalize(comm_));
      settle(lock, comm_, "disconnecting", options_.timeout);
    }
  } catch (const Error& error) {
    fail({error.code(), error.what()});
  }
  stop_watchdog();  // after this no other thread is here
  if (comm_ != nullptr) (void)api_.comm_destroy(std::exchange(comm_, nullptr));
  unfinished_.clear();
  release();
}

void NcclSession::release() noexcept {
  for (const cudaEvent_t event : free_events_) (void)api_.cuda_event_destroy(event);
  if (produced_ != nullptr) (void)api_.cuda_event_destroy(produced_);
  if (scratch_ != nullptr) (void)api_.cuda_free(scratch_);
  if (stream_ != nullptr) (void)api_.cuda_stream_destroy(stream_);
}

// ---- operations --------------------------------------------------------------------------------

std::shared_ptr<const NcclSession::Launched> NcclSession::launch(
    const std::string& what, std::chrono::milliseconds timeout, Stream producer,
    const std::function<void(ncclComm_t, cudaStream_t)>& enqueue) {
  try {
    const OnDevice device(*this);
    forget_ended();
    const auto operation = std::make_shared<Launched>(*this, what, timeout);
    Lock lock(mutex_);
    if (failure_) failure_->raise();
    settle(lock, comm_, what, options_.timeout);
    FUSEDBUN_NCCL(*this,
                  api_.cuda_event_record(produced_, static_cast<cudaStream_t>(producer.handle())));
    FUSEDBUN_NCCL(*this, api_.cuda_stream_wait_event(stream_, produced_, 0));
    run_group(enqueue);
    // Enqueued, not done: only then does an event mark its end.
    settle(lock, comm_, what, options_.timeout);
    FUSEDBUN_NCCL(*this, api_.cuda_event_record(operation->done_, stream_));
    operation->launched_at_ = SteadyClock::now();
    unfinished_.push_back(operation);
    return operation;
  } catch (const Error& error) {
    fail_and_throw(error);
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
  ncclComm_t part = nullptr;
  try {
    const OnDevice device(*this);
    Lock lock(mutex_);
    if (failure_) failure_->raise();
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    FUSEDBUN_NCCL(*this, api_.comm_split(comm_, color, key, &part, &config));
    settle(lock, comm_, "making a group", options_.timeout);
    return part;
  } catch (const Error& error) {
    if (part != nullptr) (void)api_.comm_abort(part);
    fail_and_throw(error);
  }
}

// NCCL runs non-blocking: a call may be under way after it returned. Waits until it is not, with the lock released
// between looks, so that a failure can come in.
void NcclSession::settle(Lock& lock, ncclComm_t comm, const std::string& what,
                         std::chrono::milliseconds timeout) {
  const auto deadline = SteadyClock::now() + timeout;
  for (;;) {
    if (failure_) failure_->raise();
    ncclResult_t state = ncclSuccess;
    FUSEDBUN_NCCL(*this, api_.comm_get_async_error(comm, &state));
    if (state == ncclSuccess) return;
    if (state != ncclInProgress) raise(what, state);
    FUSEDBUN_REQUIRE(SteadyClock::now() < deadline, TimeoutError,
                     prefix() + what + " was not under way after " +
                         std::to_string(timeout.count()) +
                         " ms: a rank is missing, stopped or unreachable");
    lock.unlock();
    std::this_thread::sleep_for(kPollPause);
    lock.lock();
  }
}

void NcclSession::wait(const Launched& operation, std::chrono::milliseconds timeout) {
  const auto begin = SteadyClock::now();
  try {
    for (;;) {
      {
        Lock lock(mutex_);
        if (failure_) failure_->raise();
        ncclResult_t state = ncclSuccess;
        FUSEDBUN_NCCL(*this, api_.comm_get_async_error(comm_, &state));
        if (state != ncclSuccess && state != ncclInProgress) raise(operation.what_, state);
      }
      const cudaError_t reached = api_.cuda_event_query(operation.done_);
      if (reached == cudaSuccess) return forget_ended();
      if (reached != cudaErrorNotReady) check(reached, operation.what_.c_str());
      FUSEDBUN_REQUIRE(SteadyClock::now() - begin < timeout, TimeoutError,
                       prefix() + overdue_text(operation.what_, timeout, 0));
      std::this_thread::sleep_for(kPollPause);
    }
  } catch (const Error& error) {
    fail_and_throw(error);
  }
}

void NcclSession::wait_on(const Launched& operation, Stream stream) {
  try {
    if (const auto broken = failure()) broken->raise();
    const auto consumer = static_cast<cudaStream_t>(stream.handle());
    check(api_.cuda_stream_wait_event(consumer, operation.done_, 0), operation.what_.c_str());
  } catch (const Error& error) {
    fail_and_throw(error);
  }
}

cudaEvent_t NcclSession::take_event() {
  {
    const std::lock_guard lock(events_mutex_);
    if (!free_events_.empty()) {
      const cudaEvent_t event = free_events_.back();
      free_events_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  FUSEDBUN_NCCL(*this, api_.cuda_event_create(&event, cudaEventDisableTiming));
  return event;
}

void NcclSession::forget_ended() {
  for (;;) {
    std::shared_ptr<const Launched> oldest;
    {
      const std::lock_guard lock(mutex_);
      if (failure_ || unfinished_.empty()) return;
      oldest = unfinished_.front();
    }
    const cudaError_t reached = api_.cuda_event_query(oldest->done_);
    if (reached == cudaErrorNotReady) return;
    check(reached, oldest->what_.c_str());
    const std::lock_guard lock(mutex_);
    if (unfinished_.empty() || unfinished_.front() != oldest)
      continue;  // another thread was faster
    unfinished_.pop_front();
    progressed_at_ = SteadyClock::now();
  }
}

// ---- the watchdog ------------------------------------------------------------------------------

void NcclSession::watch() {
  // A capture of another thread's stream into a graph is not to be broken by the queries of this one.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  (void)api_.cuda_thread_exchange_capture_mode(&mode);
  std::optional<OnDevice> device;
  try {
    device.emplace(*this);
  } catch (const Error&) {  // the constructor, which runs beside this, says so
  }
  Lock lock(mutex_);
  for (;;) {
    if (connected_ && !failure_ && !closing_) {
      if (auto found = look(lock); found && !failure_) {
        failure_ = found;
        lock.unlock();
        options_.on_failure(*found);
        lock.lock();
      }
    }
    if (failure_ && comm_ != nullptr) {
      const ncclComm_t comm = std::exchange(comm_, nullptr);
      aborting_ = true;
      lock.unlock();
      (void)api_.comm_abort(comm);
      lock.lock();
      aborting_ = false;
      changed_.notify_all();
    }
    if (closing_) return;
    changed_.wait_for(lock, kWatchInterval,
                      [&] { return closing_ || (failure_ && comm_ != nullptr); });
  }
}

/// What is wrong. Called with the lock, released while CUDA and NCCL are asked.
std::optional<Failure> NcclSession::look(Lock& lock) {
  const ncclComm_t comm =
      comm_;  // only this thread aborts it, and it is destroyed when this thread has ended
  const std::string oldest =
      unfinished_.empty() ? "watching the communicator" : unfinished_.front()->what_;
  lock.unlock();
  std::optional<Failure> found;
  try {
    ncclResult_t state = ncclSuccess;
    FUSEDBUN_NCCL(*this, api_.comm_get_async_error(comm, &state));
    if (state != ncclSuccess && state != ncclInProgress) raise(oldest, state);
    forget_ended();
  } catch (const Error& error) {
    found = Failure{error.code(), error.what()};
  }
  lock.lock();
  if (found || unfinished_.empty()) return found;
  const Launched& first = *unfinished_.front();
  const auto waited = SteadyClock::now() - std::max(first.launched_at_, progressed_at_);
  if (waited < first.timeout_) return found;
  return Failure{
      ExitCode::timeout,
      prefix() + overdue_text(first.what_,
                              std::chrono::duration_cast<std::chrono::milliseconds>(waited),
                              unfinished_.size() - 1)};
}

void NcclSession::stop_watchdog() noexcept {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  watchdog_.join();
}

// ---- failures ----------------------------------------------------------------------------------

void NcclSession::fail(Failure failure) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = std::move(failure);
  }
  changed_.notify_all();
}

void NcclSession::wait_for_abort() noexcept {
  Lock lock(mutex_);
  changed_.wait_for(lock, kAbortPatience, [&] { return comm_ == nullptr && !aborting_; });
}

void NcclSession::fail_and_throw(const Error& error) {
  fail({error.code(), error.what()});
  wait_for_abort();
  failure()->raise();
}

std::optional<Failure> NcclSession::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::vector<std::string> NcclSession::pending_operations() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> operations;
  for (const auto& operation : unfinished_) operations.push_back("nccl " + operation->what());
  return operations;
}

std::string NcclSession::prefix() const {
  return "nccl: rank " + std::to_string(options_.rank) + " of " + std::to_string(options_.size) +
         (options_.gpu.empty() ? " on GPU " + std::to_string(options_.device)
                               : " at " + options_.gpu) +
         ": ";
}

/// What to do where the GPU's memory is full.
std::string NcclSession::advice_on_memory() const {
  size_t free = 0, total = 0;
  std::string text = "; the GPU's memory is full";
  if (api_.cuda_mem_get_info(&free, &total) == cudaSuccess) {
    text += " (" + gibibytes(free) + " of " + gibibytes(total) + " are free)";
  }
  return text +
         ": NCCL needs some hundred MiB beside the model: take a smaller batch or model, or end "
         "other programs on this GPU";
}

void NcclSession::raise(const std::string& what, ncclResult_t result) const {
  std::string text = prefix() + what + " failed: " + api_.get_error_string(result);
  const char* const detail = api_.get_last_error(nullptr);
  if (detail != nullptr && *detail != '\0') text.append(" (").append(detail).append(")");
  if (result == ncclRemoteError) throw PeerLostError(text);
  if (text.find("out of memory") != std::string::npos) text += advice_on_memory();
  throw DeviceError(text);
}

void NcclSession::check(ncclResult_t result, const char* call) const {
  if (result != ncclSuccess && result != ncclInProgress) raise(function_of(call), result);
}

void NcclSession::check(cudaError_t result, const char* call) const {
  FUSEDBUN_REQUIRE(result == cudaSuccess, DeviceError,
                   prefix() + function_of(call) + " failed: " + api_.cuda_get_error_string(result) +
                       (result == cudaErrorMemoryAllocation ? advice_on_memory() : ""));
}

}  // namespace fusedbun::comm
