#pragma once
// The DeviceApi of NVIDIA GPUs: CUDA's runtime, and the streams that LibTorch works on.
//
// Thread safety: as DeviceApi.
#include "fusedbun/core/gpu/device_api.h"

namespace fusedbun {

/// The one of a GPU; a device without index is the calling thread's current one.
DeviceApi& cuda_device(at::Device device);

}  // namespace fusedbun
