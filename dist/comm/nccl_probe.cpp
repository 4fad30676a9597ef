#include "fusedbun/dist/comm/nccl_probe.h"

#include <algorithm>

#include "fusedbun/dist/comm/nccl_api.h"

namespace fusedbun::comm {

NcclProbe probe_nccl(const NcclApi& api) {
  NcclProbe probe;
  (void)api.get_version(&probe.nccl_version);
  (void)api.cuda_runtime_version(&probe.runtime_version);
  (void)api.cuda_driver_version(&probe.driver_version);
  int count = 0;
  cudaError_t result = api.cuda_get_device_count(&count);
  for (int device = 0; device < count && result == cudaSuccess; ++device) {
    cudaDeviceProp properties{};
    result = api.cuda_get_device_properties(&properties, device);
    NcclProbe::Gpu& gpu = probe.gpus.emplace_back();
    std::ranges::copy(properties.uuid.bytes, reinterpret_cast<char*>(gpu.uuid.data()));
    gpu.name = properties.name;
    gpu.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  }
  if (result != cudaSuccess) {
    probe.error = api.cuda_get_error_string(result);
    probe.gpus.clear();
  }
  return probe;
}

NcclProbe probe_nccl() {
  return probe_nccl(NcclApi::real());
}

}  // namespace fusedbun::comm
