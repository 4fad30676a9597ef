#include "fusedbun/core/gpu/device_api.h"

#include <atomic>

#include "fusedbun/core/error.h"
#if defined(FUSEDBUN_HAS_CUDA)
#include "fusedbun/core/gpu/cuda_device.h"
#endif

namespace fusedbun {
namespace {
std::atomic<DeviceApi*> stand_in{nullptr};
}

bool has_device_api(at::Device device) {
  if (device.is_cpu()) return stand_in.load() != nullptr;
#if defined(FUSEDBUN_HAS_CUDA)
  return device.is_cuda();
#else
  return false;
#endif
}

DeviceApi& device_api_of(at::Device device) {
#if defined(FUSEDBUN_HAS_CUDA)
  if (device.is_cuda()) return cuda_device(device);
#endif
  DeviceApi* const api = stand_in.load();
  FUSEDBUN_ASSERT(device.is_cpu() && api != nullptr, "the device has a DeviceApi");
  return *api;
}

StandInDevice::StandInDevice(DeviceApi& api) {
  FUSEDBUN_ASSERT(stand_in.exchange(&api) == nullptr, "StandInDevice is not nested");
}
StandInDevice::~StandInDevice() {
  stand_in = nullptr;
}

}  // namespace fusedbun
