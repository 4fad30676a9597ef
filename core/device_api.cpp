#include "fusedbun/core/device_api.h"

#include <atomic>

#include "fusedbun/core/error.h"
#if defined(FUSEDBUN_HAS_CUDA)
#include "fusedbun/core/cuda_device.h"
#endif

namespace fusedbun {
namespace {
std::atomic<DeviceApi*> stand_in{nullptr};
}

DeviceApi* device_api_of(at::Device device) {
  if (device.is_cpu()) return stand_in.load();
#if defined(FUSEDBUN_HAS_CUDA)
  if (device.is_cuda()) return &cuda_device(device);
#endif
  return nullptr;
}

StandInDevice::StandInDevice(DeviceApi& api) {
  FUSEDBUN_ASSERT(stand_in.exchange(&api) == nullptr, "StandInDevice is not nested");
}
StandInDevice::~StandInDevice() {
  stand_in = nullptr;
}

}  // namespace fusedbun
