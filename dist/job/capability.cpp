#include "fusedbun/dist/job/capability.h"

#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/job/gpu.h"
#include "fusedbun/dist/plan/gpu_identity.h"
#ifdef FUSEDBUN_HAS_NCCL
#include "fusedbun/dist/comm/nccl_probe.h"
#endif

extern char** environ;

namespace fusedbun {
namespace {

/// Equal on the ranks of one host, and only there: containers may share a host name, never a boot and a name.
uint64_t host_hash() {
  std::string boot_id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot_id;
  const std::string text = host_name() + boot_id;
  return XXH3_64bits(text.data(), text.size());
}

#ifdef FUSEDBUN_HAS_NCCL
plan::CudaSurvey survey_of(const comm::NcclProbe& probe) {
  const char* const visible_devices = std::getenv("CUDA_VISIBLE_DEVICES");
  return {.runtime_version = probe.runtime_version,
          .driver_version = probe.driver_version,
          .visible = static_cast<int>(probe.gpus.size()),
          .error = probe.error,
          .visible_devices = visible_devices == nullptr ? "" : visible_devices};
}
#endif

/// This rank's GPU, or why it has none.
void find_gpu(const plan::Identity& identity, plan::Capability& capability) {
#ifdef FUSEDBUN_HAS_NCCL
  const comm::NcclProbe probe = comm::probe_nccl();
  capability.has_nccl = 1;
  capability.nccl_version = probe.nccl_version;
  const plan::CudaSurvey survey = survey_of(probe);
  if (const std::string problem = plan::gpu_problem(survey); !problem.empty()) {
    capability.gpu_problem = problem;
    return;
  }
#else
  // One process alone needs no NCCL, and LibTorch counts the GPUs.
  plan::CudaSurvey survey;
#endif
  try {
    const int gpus = load_gpu_support();
#ifndef FUSEDBUN_HAS_NCCL
    survey.visible = gpus;
#endif
    FUSEDBUN_REQUIRE(gpus > 0, DeviceError,
                     "LibTorch sees no GPU (is a driver installed? nvidia-smi lists the GPUs)");
    FUSEDBUN_REQUIRE(gpus == survey.visible, DeviceError,
                     "LibTorch sees " + std::to_string(gpus) + " GPUs, the CUDA runtime " +
                         std::to_string(survey.visible) +
                         ": one installation of CUDA must serve both (nvidia-smi lists the GPUs)");
  } catch (const DeviceError& error) {
    capability.gpu_problem = std::string_view(error.what());
    return;
  }
  capability.gpu_ordinal = plan::choose_gpu(identity.local_rank, survey.visible).value();
#ifdef FUSEDBUN_HAS_NCCL
  capability.gpu_uuid = probe.gpus[static_cast<size_t>(capability.gpu_ordinal)].uuid;
#endif
}

}  // namespace

plan::Capability capability_of(const plan::Identity& identity, plan::BackendRequest request,
                               const GpuUse& gpu) {
  plan::Capability capability;
  capability.host_hash = host_hash();
  capability.host = host_name();
  capability.request = static_cast<int32_t>(request);
  capability.wants_gpu = gpu.use;
  capability.shares_gpu = gpu.use && gpu.share;
#ifdef FUSEDBUN_HAS_MPI
  capability.has_mpi = identity.launcher == plan::Launcher::open_mpi;
#endif
  if (gpu.use) find_gpu(identity, capability);
  return capability;
}

void require_gpu(const plan::Identity& identity) {
  const plan::Capability found =
      capability_of(identity, plan::BackendRequest::automatic, {.use = true});
  FUSEDBUN_REQUIRE(found.gpu_ordinal >= 0, DeviceError,
                   plan::no_gpu_sentence(found, identity.rank));
}

plan::Environment read_environment() {
  plan::Environment environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t end = text.find('=');
    if (end != std::string::npos) environment[text.substr(0, end)] = text.substr(end + 1);
  }
  return environment;
}

}  // namespace fusedbun
