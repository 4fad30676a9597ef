#include "lazy_device.h"

#include <cstring>
#include <mutex>
#include <vector>

#include "fusedbun/core/gpu/gradient_cuda.h"
#include "fusedbun/core/gpu/step_cuda.h"

namespace fusedbun {
namespace {

lazy_cuda::Stream* stream_of(CudaStream stream) {
  return static_cast<lazy_cuda::Stream*>(stream.handle());
}

std::mutex calls_mutex;
std::map<std::string, int> counted;

void count(const char* call) {
  const std::lock_guard lock(calls_mutex);
  ++counted[call];
}

class LazyEvent final : public DeviceEvent {
 public:
  explicit LazyEvent(lazy_cuda::Event event) : event_(std::move(event)) {}
  bool is_reached() override { return lazy_cuda::is_reached(event_); }
  void wait() override {
    if (lazy_cuda::is_reached(event_)) return;
    count("host wait");
    lazy_cuda::wait(event_);
  }
  const lazy_cuda::Event& event() const { return event_; }

 private:
  const lazy_cuda::Event event_;
};

template <class T>
constexpr StepKernels<T> step_kernels() {
  return {cuda_on_cpu::absorb<T>,  cuda_on_cpu::prepare<T>, cuda_on_cpu::begin<T>,
          cuda_on_cpu::collect<T>, cuda_on_cpu::finish<T>,  cuda_on_cpu::measure<T>};
}

}  // namespace

CudaStream LazyDevice::current_stream() {
  return CudaStream(static_cast<void*>(lazy_cuda::current_stream()));
}

const DeviceKernels& LazyDevice::kernels() const {
  static constexpr DeviceKernels kKernels{step_kernels<float>(), step_kernels<double>(),
                                          cuda_on_cpu::move,     cuda_on_cpu::add_squares,
                                          cuda_on_cpu::offer,    cuda_on_cpu::decide};
  return kKernels;
}

void LazyDevice::run(CudaStream stream, std::function<void(CudaStream)> launch) {
  count("run");
  lazy_cuda::give(stream_of(stream), [launch = std::move(launch), stream] { launch(stream); });
}

void LazyDevice::upload(void* device, std::span<const std::byte> host, CudaStream stream) {
  count("upload");
  lazy_cuda::give(stream_of(stream), [device, bytes = std::vector(host.begin(), host.end())] {
    std::memcpy(device, bytes.data(), bytes.size());
  });
}

void LazyDevice::download(void* host, const void* device, int64_t bytes, CudaStream stream) {
  count("download");
  lazy_cuda::give(stream_of(stream),
                  [=] { std::memcpy(host, device, static_cast<size_t>(bytes)); });
}

void LazyDevice::copy(void* to, const void* from, int64_t bytes, CudaStream stream) {
  count("copy");
  lazy_cuda::give(stream_of(stream), [=] { std::memcpy(to, from, static_cast<size_t>(bytes)); });
}

void LazyDevice::zero(void* memory, int64_t bytes, CudaStream stream) {
  count("zero");
  lazy_cuda::give(stream_of(stream), [=] { std::memset(memory, 0, static_cast<size_t>(bytes)); });
}

std::shared_ptr<std::byte> LazyDevice::allocate_pinned(int64_t bytes) {
  // CUDA gives such memory back when the device has done what it was given.
  return {new std::byte[static_cast<size_t>(bytes)], [](std::byte* memory) {
            lazy_cuda::catch_up(lazy_cuda::current_stream());
            delete[] memory;
          }};
}

// The CPU's allocator knows of no stream.
void LazyDevice::keep(std::vector<at::Tensor> tensors, bool, CudaStream stream) {
  lazy_cuda::give(stream_of(stream), [kept = std::move(tensors)] {});
}

std::unique_ptr<DeviceEvent> LazyDevice::record(CudaStream stream) {
  return std::make_unique<LazyEvent>(lazy_cuda::record(stream_of(stream)));
}

void LazyDevice::wait_on(CudaStream stream, const DeviceEvent& event) {
  lazy_cuda::wait_on(stream_of(stream), static_cast<const LazyEvent&>(event).event());
}

std::map<std::string, int> LazyDevice::calls() const {
  const std::lock_guard lock(calls_mutex);
  return counted;
}

void LazyDevice::clear_calls() {
  const std::lock_guard lock(calls_mutex);
  counted.clear();
}

}  // namespace fusedbun
