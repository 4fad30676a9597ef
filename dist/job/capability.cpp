#include "fusedbun/dist/job/capability.h"

#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fstream>
#include <string>

#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/job/gpu.h"

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

}  // namespace

plan::Capability capability_of(const plan::Identity& identity, plan::BackendRequest request,
                               bool use_gpu) {
  plan::Capability capability;
  capability.host_hash = host_hash();
  capability.request = static_cast<int32_t>(request);
  capability.wants_gpu = use_gpu;
#ifdef FUSEDBUN_HAS_MPI
  capability.has_mpi = identity.launcher == plan::Launcher::open_mpi;
#endif
  if (use_gpu) {
    const int gpus = load_gpu_support();
#ifdef FUSEDBUN_HAS_NCCL
    capability.has_nccl = gpus > 0;
#endif
    if (identity.local_rank < gpus) capability.gpu_index = identity.local_rank;
  }
  return capability;
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
