#pragma once
// GpuIdentity: which GPU a rank computes on. A GPU is told apart by its UUID and not by its number: two ranks that each see one GPU
// (Slurm's --gpus-per-task=1, a CUDA_VISIBLE_DEVICES per rank) both call it number 0, and it may be two GPUs or one.
//
// Thread safety: values.
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fusedbun::plan {

/// As the driver tells it (cudaDeviceProp::uuid); of a MIG instance that of the instance.
using GpuUuid = std::array<uint8_t, 16>;
/// "GPU-6f1c2d3e-....": as nvidia-smi and CUDA_VISIBLE_DEVICES write it.
std::string to_text(const GpuUuid& uuid);

/// CUDA ordinal of the GPU that local rank `local_rank` takes in a process that sees `visible` GPUs: the local_rank-th, and from the first
/// one on again if there are fewer, because the ranks may see different ones. Whether two took the same, they find out together, by UUID.
/// Nothing if there is none.
std::optional<int> choose_gpu(int local_rank, int visible);

/// What the CUDA runtime said when it was asked for GPUs.
struct CudaSurvey {
  int runtime_version = 0;           ///< of the CUDA runtime that LibTorch brings: 13000 is 13.0
  int driver_version = 0;            ///< the newest CUDA that the driver supports; 0: no driver
  int visible = 0;                   ///< GPUs that this process sees
  std::string error = {};            ///< of the question how many there are; empty: it was answered
  std::string visible_devices = {};  ///< the variable CUDA_VISIBLE_DEVICES; empty: not set
};
/// Why there is no GPU to use, and what to do: "no NVIDIA driver is installed here, ...". Empty if there is one.
std::string gpu_problem(const CudaSurvey& survey);

/// 13000 -> "13.0".
std::string cuda_version_text(int version);
/// 23007 -> "2.30.7".
std::string nccl_version_text(int version);

}  // namespace fusedbun::plan
