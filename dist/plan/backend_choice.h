#pragma once
// BackendChoice: which communicator all ranks use, decided from what each can do. Every rank
// computes it from the same gathered table, so all decide alike.
//
// Thread safety: values.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace fusedbun::plan {

enum class BackendRequest : uint8_t { automatic, gloo, mpi, nccl };
std::string_view name_of(BackendRequest request);
/// "auto", "gloo", "mpi", "nccl"; throws ConfigError listing them.
BackendRequest parse_backend(std::string_view name);

/// What one rank can do: plain memory, exchanged once.
struct Capability {
  uint8_t has_gloo = 1;
  uint8_t has_mpi = 0;     ///< built in, and Open MPI started this process
  uint8_t has_nccl = 0;    ///< built in, and the library initialises
  uint8_t wants_gpu = 0;   ///< the job's device is cuda
  uint64_t host_hash = 0;  ///< equal on ranks of one host
  int32_t gpu_index = -1;  ///< physical GPU of this rank, -1: none
  int32_t request = 0;     ///< BackendRequest of this rank
};
static_assert(sizeof(Capability) == 24);

struct BackendChoice {
  BackendRequest backend = BackendRequest::gloo;  ///< never automatic
  std::string reason;  ///< "gloo: rank 1 has no GPU of its own and Open MPI did not start this job"
};

/// Throws ConfigError naming the first rank on which an explicit choice cannot hold, or two ranks
/// that ask differently.
BackendChoice choose_backend(std::span<const Capability> ranks);

}  // namespace fusedbun::plan
