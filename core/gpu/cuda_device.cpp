#include "fusedbun/core/gpu/cuda_device.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/gpu/gradient_cuda.h"
#include "fusedbun/core/gpu/step_cuda.h"

namespace fusedbun {
namespace {

void require_success(cudaError_t status, const char* what) {
  FUSEDBUN_REQUIRE(status == cudaSuccess, DeviceError,
                   std::string("CUDA could not ") + what + ": " + cudaGetErrorString(status));
}

cudaStream_t handle_of(CudaStream stream) {
  return static_cast<cudaStream_t>(stream.handle());
}

class CudaEvent final : public DeviceEvent {
 public:
  CudaEvent() {
    require_success(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make an event");
  }
  ~CudaEvent() override { (void)cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;  // owns the event

  bool is_reached() override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status != cudaErrorNotReady) require_success(status, "do the work that was given to it");
    return status == cudaSuccess;
  }
  void wait() override {
    require_success(cudaEventSynchronize(event_), "do the work that was given to it");
  }
  cudaEvent_t handle() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

std::shared_ptr<std::byte> pinned_memory(int64_t bytes) {
  void* memory = nullptr;
  require_success(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable),
                  "allocate pinned memory");
  return {static_cast<std::byte*>(memory), [](std::byte* start) { (void)cudaFreeHost(start); }};
}

template <class T>
constexpr StepKernels<T> step_kernels() {
  return {cuda::absorb<T>,  cuda::prepare<T>, cuda::begin<T>,
          cuda::collect<T>, cuda::finish<T>,  cuda::measure<T>};
}

class CudaDevice final : public DeviceApi {
 public:
  explicit CudaDevice(at::Device device) : device_(device), streams_(device.type()) {}

  CudaStream current_stream() override {
    return CudaStream(streams_.getStream(device_).native_handle());
  }
  const DeviceKernels& kernels() const override {
    static constexpr DeviceKernels kKernels{
        step_kernels<float>(), step_kernels<double>(), cuda::move, cuda::add_squares, cuda::offer,
        cuda::decide};
    return kKernels;
  }

  void run(CudaStream stream, std::function<void(CudaStream)> launch) override {
    const c10::DeviceGuard on_device(device_);
    launch(stream);
  }
  void upload(void* device, std::span<const std::byte> host, CudaStream stream) override {
    const c10::DeviceGuard on_device(device_);
    const std::lock_guard lock(mutex_);
    Staging& staging = free_staging(static_cast<int64_t>(host.size()));
    std::memcpy(staging.memory.get(), host.data(), host.size());
    copy_bytes(device, staging.memory.get(), static_cast<int64_t>(host.size()), stream);
    staging.in_use = record(stream);
  }
  void download(void* host, const void* device, int64_t bytes, CudaStream stream) override {
    copy(host, device, bytes, stream);
  }
  void copy(void* to, const void* from, int64_t bytes, CudaStream stream) override {
    const c10::DeviceGuard on_device(device_);
    copy_bytes(to, from, bytes, stream);
  }
  void zero(void* memory, int64_t bytes, CudaStream stream) override {
    const c10::DeviceGuard on_device(device_);
    require_success(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), handle_of(stream)),
                    "clear memory");
  }
  std::shared_ptr<std::byte> allocate_pinned(int64_t bytes) override {
    const c10::DeviceGuard on_device(device_);
    return pinned_memory(bytes);
  }

  void keep(std::vector<at::Tensor> tensors, bool made_elsewhere, CudaStream stream) override {
    if (!made_elsewhere) return;
    FUSEDBUN_ASSERT(stream.handle() == current_stream().handle(), "the stream is the current one");
    for (at::Tensor& tensor : tensors) tensor.record_stream(streams_.getStream(device_));
  }

  std::unique_ptr<DeviceEvent> record(CudaStream stream) override {
    const c10::DeviceGuard on_device(device_);
    auto event = std::make_unique<CudaEvent>();
    require_success(cudaEventRecord(event->handle(), handle_of(stream)), "record an event");
    return event;
  }
  void wait_on(CudaStream stream, const DeviceEvent& event) override {
    const c10::DeviceGuard on_device(device_);
    require_success(
        cudaStreamWaitEvent(handle_of(stream), static_cast<const CudaEvent&>(event).handle(), 0),
        "make a stream wait");
  }

 private:
  // Pinned memory that an upload is read from while the program goes on.
  struct Staging {
    std::shared_ptr<std::byte> memory;
    int64_t bytes = 0;
    std::unique_ptr<DeviceEvent> in_use;
  };

  static void copy_bytes(void* to, const void* from, int64_t bytes, CudaStream stream) {
    require_success(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, handle_of(stream)),
        "copy memory");
  }
  // As many as uploads are under way at once, so few.
  Staging& free_staging(int64_t bytes) {
    for (Staging& staging : staging_) {
      const bool is_free = staging.in_use == nullptr || staging.in_use->is_reached();
      if (staging.bytes >= bytes && is_free) return staging;
    }
    constexpr int64_t kLeast = 64 << 10;
    const int64_t size = std::max(bytes, kLeast);
    return staging_.emplace_back(Staging{pinned_memory(size), size, nullptr});
  }

  const at::Device device_;
  const c10::impl::VirtualGuardImpl streams_;
  std::mutex mutex_;  // guards staging_
  std::vector<Staging> staging_;
};

}  // namespace

DeviceApi& cuda_device(at::Device device) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, CudaDevice> devices;
  const c10::impl::VirtualGuardImpl current(device.type());
  const at::Device indexed = device.has_index() ? device : current.getDevice();
  const std::lock_guard lock(mutex);
  return devices.try_emplace(indexed.index(), indexed).first->second;
}

}  // namespace fusedbun
