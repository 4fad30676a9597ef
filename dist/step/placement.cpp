#include "fusedbun/dist/step/placement.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace fusedbun {

std::string why_not_there(at::Device device, const Placement& placement) {
  const bool is_there = placement.device.is_cpu() ? device.is_cpu() : device == placement.device;
  if (is_there) return "";
  const std::string is_on = "is on " + device.str() + ", but ";
  if (placement.device.is_cpu()) {
    return is_on +
           "this job's parameters are on the CPU: make the Job with use_gpu = true (fusedbun "
           "train: --device cuda), or move the model with to(torch::kCPU)";
  }
  return is_on + "this rank's GPU is " + placement.describe() +
         ": move the model with to(job.placement().device) before the optimizer is made";
}

Placement current_placement(bool on_gpu) {
  if (!on_gpu) return {};
  return {.device = c10::impl::VirtualGuardImpl(at::kCUDA).getDevice()};
}

}  // namespace fusedbun
