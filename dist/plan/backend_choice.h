#pragma once
// BackendChoice: which communicator all ranks use, decided from what each can do. Every rank
// computes it from the same gathered table, so all decide alike.
//
// Thread safety: values.
#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "fusedbun/dist/plan/gpu_identity.h"

namespace fusedbun::plan {

enum class BackendRequest : uint8_t { automatic, gloo, mpi, nccl };
std::string_view name_of(BackendRequest request);
/// "auto", "gloo", "mpi", "nccl"; throws ConfigError listing them.
BackendRequest parse_backend(std::string_view name);

/// A text of at most kSize - 1 bytes as plain memory; what is longer is cut.
template <size_t kSize>
struct ShortText {
  std::array<char, kSize> bytes = {};

  ShortText() = default;
  template <std::convertible_to<std::string_view> Text>
  ShortText(const Text& text) {  // implicit: it stands where a text is meant
    std::string_view(text).copy(bytes.data(), kSize - 1);
  }
  std::string_view view() const { return bytes.data(); }
  bool empty() const { return bytes[0] == 0; }
};

/// What one rank can do: plain memory, exchanged once.
struct Capability {
  uint8_t has_gloo = 1;
  uint8_t has_mpi = 0;     ///< built in, and Open MPI started this process
  uint8_t has_nccl = 0;    ///< built in
  uint8_t wants_gpu = 0;   ///< the job's parameters are on GPUs
  uint8_t shares_gpu = 0;  ///< several ranks on one GPU were asked for
  int32_t gpu_ordinal =
      -1;  ///< of this rank's GPU, as this process counts; -1: none, and gpu_problem says why
  int32_t nccl_version = 0;  ///< of the library that is loaded, 23007 is 2.30.7; 0: none
  int32_t request = 0;       ///< BackendRequest of this rank
  uint64_t host_hash = 0;    ///< equal on ranks of one host
  GpuUuid gpu_uuid = {};     ///< of this rank's GPU
  ShortText<64> host = {};
  ShortText<320> gpu_problem = {};
};

struct BackendChoice {
  BackendRequest backend = BackendRequest::gloo;  ///< never automatic
  std::string reason;  ///< "gloo: rank 1 runs on the CPU and Open MPI did not start this job"
};

/// Parameters on GPUs travel over NCCL or not at all (one process alone needs no NCCL). Throws DeviceError naming the first rank that
/// has no GPU to use, ConfigError naming the first rank on which an explicit choice cannot hold, two ranks that ask differently, two
/// that are on one GPU without having asked for it, or whose NCCLs differ.
BackendChoice choose_backend(std::span<const Capability> ranks);

/// "rank 1 (on node3) has no GPU to use: <why>; ...": for a rank whose gpu_ordinal is -1.
std::string no_gpu_sentence(const Capability& capability, int rank);

/// The first NCCL that takes several ranks on one GPU, with NCCL_MULTI_RANK_GPU_ENABLE=1.
inline constexpr int kNcclSharesGpuSince = 23000;

}  // namespace fusedbun::plan
