#pragma once
// A DeviceApi over lazy streams: the kernels run on the CPU, the tensors are the CPU's, and nothing is done before it must be.
//
//   LazyDevice device;
//   StandInDevice stand_in(device);      // from here on optimizers take CPU tensors for a GPU's
//   ... device.catch_up();               // before LibTorch's own operations on them
//
// Thread safety: as lazy_cuda.h.
#include <map>
#include <string>
#include <vector>

#include "fusedbun/core/gpu/device_api.h"
#include "lazy_cuda.h"

namespace fusedbun {

class LazyDevice final : public DeviceApi {
 public:
  CudaStream current_stream() override;
  const DeviceKernels& kernels() const override;
  void run(CudaStream stream, std::function<void(CudaStream)> launch) override;
  void upload(void* device, std::span<const std::byte> host, CudaStream stream) override;
  void download(void* host, const void* device, int64_t bytes, CudaStream stream) override;
  void copy(void* to, const void* from, int64_t bytes, CudaStream stream) override;
  void zero(void* memory, int64_t bytes, CudaStream stream) override;
  std::shared_ptr<std::byte> allocate_pinned(int64_t bytes) override;
  void keep(std::vector<at::Tensor> tensors, bool made_elsewhere, CudaStream stream) override;
  std::unique_ptr<DeviceEvent> record(CudaStream stream) override;
  void wait_on(CudaStream stream, const DeviceEvent& event) override;

  /// What was given to the calling thread's current stream is done.
  void catch_up() { lazy_cuda::catch_up(lazy_cuda::current_stream()); }

  /// How often each of the calls above was made since the last clear: "run", "upload", ... and "host wait".
  std::map<std::string, int> calls() const;
  void clear_calls();
};

}  // namespace fusedbun
