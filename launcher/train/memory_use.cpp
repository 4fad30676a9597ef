#include "fusedbun/launcher/train/memory_use.h"

#include <ATen/DeviceAccelerator.h>

#include "fusedbun/launcher/env/host.h"

namespace fusedbun::train {

MemoryUse::MemoryUse(c10::Device device)
    : device_(device), before_(device.is_cpu() ? launcher::resident_memory().bytes : 0) {}

// LibTorch's interface to the accelerator that there is, so nothing here links CUDA.
int64_t MemoryUse::peak() const {
  if (device_.is_cpu()) return launcher::resident_memory().peak_bytes - before_;
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return at::accelerator::getDeviceStats(device_.index()).allocated_bytes[kAll].peak;
}

}  // namespace fusedbun::train
