#pragma once
// DeviceApi: everything that the optimizer does with a GPU: copies, kernels and events, each given to a stream and done later. Nothing of the
// optimizer touches a GPU's memory in another way, so that a double behind it (tests/cuda_on_cpu) can do the same work as late as streams and
// events allow, on the CPU.
//
// Errors: DeviceError with CUDA's text. Thread safety: calls may come from several threads, for distinct streams.
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "fusedbun/core/gpu/cuda_stream.h"
#include "fusedbun/core/gpu/gradient_table.h"
#include "fusedbun/core/gpu/step_table.h"

namespace fusedbun {

/// The launches of step_cuda.h and gradient_cuda.h.
template <class T>
struct StepKernels {
  void (*absorb)(const device::StepTable<T>&, bool with_squares, CudaStream);
  void (*prepare)(const device::StepTable<T>&, CudaStream);
  void (*begin)(const device::StepTable<T>&, bool centred, CudaStream);
  void (*collect)(const device::StepTable<T>&, CudaStream);
  void (*finish)(const device::StepTable<T>&, bool centred, CudaStream);
  void (*measure)(const device::StepTable<T>&, CudaStream);
};
struct DeviceKernels {
  StepKernels<float> f32;
  StepKernels<double> f64;
  void (*move)(const device::MoveTable&, CudaStream);
  void (*add_squares)(const device::MoveTable&, double* partials, double* sum, CudaStream);
  void (*offer)(double* squares, device::StepControl*, device::Agreed*, CudaStream);
  void (*decide)(const device::Agreed*, const device::StepInputs*, device::StepControl*,
                 device::StepOutcome*, CudaStream);

  template <class T>
  const StepKernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return f32;
    } else {
      return f64;
    }
  }
};

/// A point in the work of a stream.
class DeviceEvent {
 public:
  virtual ~DeviceEvent() = default;
  /// Whether the device has come to it.
  virtual bool is_reached() = 0;
  /// Until it has.
  virtual void wait() = 0;
};

class DeviceApi {
 public:
  virtual ~DeviceApi() = default;

  /// The stream on which the calling thread's work for this device goes, as LibTorch has it.
  virtual CudaStream current_stream() = 0;
  virtual const DeviceKernels& kernels() const = 0;

  /// Gives `launch` to the stream; it starts kernels with what it has captured.
  virtual void run(CudaStream stream, std::function<void(CudaStream)> launch) = 0;
  /// `host` may go when the call returns.
  virtual void upload(void* device, std::span<const std::byte> host, CudaStream stream) = 0;
  /// `host` is of allocate_pinned, and has the bytes when a later event of the stream is reached.
  virtual void download(void* host, const void* device, int64_t bytes, CudaStream stream) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes, CudaStream stream) = 0;
  virtual void zero(void* memory, int64_t bytes, CudaStream stream) = 0;
  /// Host memory that a device can write while the program goes on.
  virtual std::shared_ptr<std::byte> allocate_pinned(int64_t bytes) = 0;

  /// The tensors' memory stays theirs until the stream has done what it was given so far. `made_elsewhere`: by work of other streams; else
  /// LibTorch's allocator knows.
  virtual void keep(std::vector<at::Tensor> tensors, bool made_elsewhere, CudaStream stream) = 0;

  /// What the stream has been given so far.
  virtual std::unique_ptr<DeviceEvent> record(CudaStream stream) = 0;
  /// Later work of the stream comes after the event.
  virtual void wait_on(CudaStream stream, const DeviceEvent& event) = 0;
};

/// Memory on a device that may go at any time: it does when the stream that is the current one then has done what it was given.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceApi& api, at::Tensor tensor) : api_(&api), tensor_(std::move(tensor)) {}
  ~DeviceMemory() { let_go(); }
  DeviceMemory(DeviceMemory&&) noexcept = default;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    let_go();
    api_ = other.api_;
    tensor_ = std::exchange(other.tensor_, {});
    return *this;
  }
  DeviceMemory(const DeviceMemory&) = delete;  // it goes once

  const at::Tensor& tensor() const { return tensor_; }

 private:
  void let_go() noexcept {
    if (tensor_.defined())
      api_->keep({std::exchange(tensor_, {})}, /*made_elsewhere=*/false, api_->current_stream());
  }

  DeviceApi* api_ = nullptr;
  at::Tensor tensor_;
};

/// True if tensors on `device` are stepped through a DeviceApi.
bool has_device_api(at::Device device);
/// The one for tensors on `device`, where it has one; lives as long as the program.
DeviceApi& device_api_of(at::Device device);

/// For tests: while an object of this class lives, `api` is that of tensors in the CPU's memory (process-wide, not nested).
class StandInDevice {
 public:
  explicit StandInDevice(DeviceApi& api);
  ~StandInDevice();
  StandInDevice(const StandInDevice&) = delete;
};

}  // namespace fusedbun
