#pragma once
// What this host offers a rank: cores, memory, GPUs.
//
// Thread safety: any thread.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace fusedbun::launcher {

struct SharedMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};

/// Of this process, pages that it shares with others included.
struct ResidentMemory {
  int64_t bytes = 0;       ///< now
  int64_t peak_bytes = 0;  ///< the most so far
};

/// How many cores this process may use: those it may run on, or as many as its cgroups' quota of time is worth (docker --cpus,
/// limits of Kubernetes), rounded up, if that is less.
int usable_cores();
/// What the quota is worth; nothing without one. `cgroups` is what /proc/self/cgroup says, `mount` where cgroups are mounted.
std::optional<int> cores_of_quota(const std::string& cgroups, const std::filesystem::path& mount);

/// Whether the processor multiplies matrices of bfloat16 itself: AVX512_BF16 or AMX on x86, FEAT_BF16 on ARM. Nothing where the host does not
/// say. LibTorch names these flags for x86 alone.
std::optional<bool> has_bfloat16_products();
/// The same of what /proc/cpuinfo says.
std::optional<bool> bfloat16_products_in(const std::string& cpuinfo);

/// Of /dev/shm, where NCCL and Open MPI keep the buffers of a host's ranks; nothing if it is not mounted.
std::optional<SharedMemory> shared_memory();
/// By /proc/self/status; zeros where there is none.
ResidentMemory resident_memory();
/// From now on memory that is freed stays with this process (glibc; elsewhere nothing happens). A training step frees and asks
/// again for the same hundreds of megabytes; given back, each page is a fault and 4 kB of zeros per step: 10 % of a whole step of
/// 124 M parameters on two cores. Called before the first step, when what the set-up needed has been given back. It is for
/// programs, not for libraries, to decide.
void disable_malloc_trim();
/// The other way round: from now on a block of 1 MiB or more goes back to the host when it is freed (glibc), so this process holds no more
/// than it uses. Memory that is kept has holes, since tensors come and go in another order in backward than in forward: a step with
/// activation checkpointing was found to hold twice what it used.
void return_freed_memory();
/// Names of the GPUs that CUDA shows this process (CUDA_VISIBLE_DEVICES holds); empty without a driver.
std::vector<std::string> visible_gpus();

}  // namespace fusedbun::launcher
