#include "fusedbun/dist/job/device_error.h"

#include <c10/util/Exception.h>

namespace fusedbun {
namespace {

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

/// "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free." of LibTorch's page, which goes on
/// with what its allocator holds; the whole first line if that is not in it.
std::string asked_and_free(const std::string& page) {
  const std::string line = first_line(page);
  const size_t begin = line.find("Tried to allocate");
  const size_t free = line.find(" is free", begin);
  if (begin == std::string::npos || free == std::string::npos) return line;
  return line.substr(begin, free + std::string(" is free").size() - begin);
}

}  // namespace

std::optional<DeviceError> device_error_behind(const std::exception& error,
                                               const std::string& where) {
  if (const auto* full = dynamic_cast<const c10::OutOfMemoryError*>(&error)) {
    return DeviceError(
        where + ": the GPU's memory is full: " + asked_and_free(full->what_without_backtrace()) +
        "; take a smaller batch (more accumulation), a shorter context, the preset "
        "compact or more ranks, or end other programs on this GPU (nvidia-smi)");
  }
  if (const auto* cuda = dynamic_cast<const c10::AcceleratorError*>(&error)) {
    return DeviceError(where + ": " + first_line(cuda->what_without_backtrace()) +
                       " (CUDA reports an error at a later call than the one that failed: "
                       "CUDA_LAUNCH_BLOCKING=1 shows which)");
  }
  return std::nullopt;
}

}  // namespace fusedbun
