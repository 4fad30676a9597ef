#pragma once
// Placement: on which device a rank's parameters are, decided once per process (dist/job). Everything that the optimizer allocates goes
// to exactly this device, and what runs for it runs with it as the current one.
//
// Invariant: a GPU has an index, because "cuda" without one means whatever the calling thread's current device is.
//
// Thread safety: a value.
#include <c10/core/Device.h>

#include <string>

namespace fusedbun {

struct Placement {
  at::Device device = at::Device(at::kCPU);
  std::string gpu_uuid =
      {};  ///< "GPU-6f1c...", by which nvidia-smi knows it; empty: CPU, or unknown

  /// "cuda:1 (GPU-6f1c...)", "cpu".
  std::string describe() const {
    return gpu_uuid.empty() ? device.str() : device.str() + " (" + gpu_uuid + ")";
  }
};

/// Why a parameter on `device` cannot be trained, and what to do: "is on cuda:0, but this rank's GPU is cuda:1 (GPU-6f1c...): ..."; empty if
/// it can.
std::string why_not_there(at::Device device, const Placement& placement);

/// The CPU, or the calling thread's current GPU: for communicators that were connected without a Job.
Placement current_placement(bool on_gpu);

}  // namespace fusedbun
