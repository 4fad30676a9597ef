#include "fusedbun/dist/plan/gpu_identity.h"

namespace fusedbun::plan {
namespace {

std::string seen(const CudaSurvey& survey) {
  return survey.visible_devices.empty() ? ""
                                        : " (CUDA_VISIBLE_DEVICES=" + survey.visible_devices + ")";
}

}  // namespace

std::string to_text(const GpuUuid& uuid) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text = "GPU-";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[uuid[i] >> 4];
    text += kDigits[uuid[i] & 15];
  }
  return text;
}

std::optional<int> choose_gpu(int local_rank, int visible) {
  return visible > 0 ? std::optional(local_rank % visible) : std::nullopt;
}

std::string gpu_problem(const CudaSurvey& survey) {
  if (survey.driver_version == 0) {
    return "no NVIDIA driver is installed here (libcuda.so.1 is missing): install it, or in a "
           "container pass the GPUs on (docker run --gpus all)";
  }
  if (survey.driver_version < survey.runtime_version && !survey.error.empty()) {
    return "the NVIDIA driver is too old: it supports CUDA " +
           cuda_version_text(survey.driver_version) + " and LibTorch here is made for CUDA " +
           cuda_version_text(survey.runtime_version) +
           ": update the driver, or install a LibTorch for an older CUDA";
  }
  if (!survey.error.empty()) {
    return "CUDA finds no GPU" + seen(survey) + ": " + survey.error +
           " (nvidia-smi lists those that the driver has)";
  }
  if (survey.visible == 0) {
    return "CUDA shows this process no GPU" + seen(survey) +
           ": nvidia-smi lists those that the driver has";
  }
  return "";
}

std::string cuda_version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// NCCL_VERSION: until 2.8 other digits than since.
std::string nccl_version_text(int version) {
  const int major = version < 10000 ? version / 1000 : version / 10000;
  const int rest = version < 10000 ? version % 1000 : version % 10000;
  return std::to_string(major) + "." + std::to_string(rest / 100) + "." +
         std::to_string(rest % 100);
}

}  // namespace fusedbun::plan
