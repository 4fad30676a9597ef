#include "fusedbun/dist/plan/backend_choice.h"

#include <algorithm>
#include <array>

#include "fusedbun/core/error.h"

namespace fusedbun::plan {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"auto", "gloo", "mpi", "nccl"};

/// Why a backend cannot serve a rank; empty if it can.
using Obstacle = std::string (*)(std::span<const Capability> ranks, size_t rank);

std::string gloo_obstacle(std::span<const Capability> ranks, size_t rank) {
  return ranks[rank].has_gloo ? "" : "has no Gloo built in";
}

std::string mpi_obstacle(std::span<const Capability> ranks, size_t rank) {
  return ranks[rank].has_mpi ? "" : "was not started by Open MPI, or has no MPI built in";
}

std::string nccl_obstacle(std::span<const Capability> ranks, size_t rank) {
  const Capability& self = ranks[rank];
  if (!self.wants_gpu) return "runs on the CPU";
  if (!self.has_nccl) return "has no NCCL built in, or it does not initialise";
  if (self.gpu_index < 0) return "has no GPU of its own";
  for (size_t other = 0; other < ranks.size(); ++other) {
    const bool shared =
        ranks[other].host_hash == self.host_hash && ranks[other].gpu_index == self.gpu_index;
    if (other == rank || !shared) continue;
    return "has no GPU of its own (it shares GPU " + std::to_string(self.gpu_index) +
           " with rank " + std::to_string(other) + ")";
  }
  return "";
}

Obstacle obstacle_of(BackendRequest backend) {
  switch (backend) {
    case BackendRequest::gloo:
      return gloo_obstacle;
    case BackendRequest::mpi:
      return mpi_obstacle;
    case BackendRequest::nccl:
      return nccl_obstacle;
    case BackendRequest::automatic:
      break;
  }
  FUSEDBUN_ASSERT(false, "automatic is no backend");
  return nullptr;
}

/// "rank 1 has no GPU of its own" for the first rank that `backend` cannot serve; empty if it
/// serves all.
std::string first_obstacle(std::span<const Capability> ranks, BackendRequest backend) {
  const Obstacle obstacle = obstacle_of(backend);
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::string why = obstacle(ranks, rank);
    if (!why.empty()) return "rank " + std::to_string(rank) + ' ' + why;
  }
  return "";
}

/// Every rank must ask for the same; then returns what they ask for.
BackendRequest common_request(std::span<const Capability> ranks) {
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const std::string name = "rank " + std::to_string(rank);
    const int32_t request = ranks[rank].request;
    FUSEDBUN_REQUIRE(request >= 0 && request < static_cast<int32_t>(kNames.size()), ConfigError,
                     name + " asks for backend number " + std::to_string(request) +
                         ", which is unknown: run the same build on all ranks");
    FUSEDBUN_REQUIRE(request == ranks[0].request, ConfigError,
                     name + " asks for backend " + std::string(kNames[request]) + ", rank 0 for " +
                         std::string(kNames[ranks[0].request]) +
                         ": give all ranks the same --backend");
    FUSEDBUN_REQUIRE(ranks[rank].wants_gpu == ranks[0].wants_gpu, ConfigError,
                     name +
                         (ranks[rank].wants_gpu ? " runs on a GPU, rank 0 on the CPU"
                                                : " runs on the CPU, rank 0 on a GPU") +
                         ": give all ranks the same device");
  }
  return static_cast<BackendRequest>(ranks[0].request);
}

}  // namespace

std::string_view name_of(BackendRequest request) {
  return kNames.at(static_cast<size_t>(request));
}

BackendRequest parse_backend(std::string_view name) {
  const auto found = std::ranges::find(kNames, name);
  FUSEDBUN_REQUIRE(found != kNames.end(), ConfigError,
                   "backend '" + std::string(name) + "': must be auto, gloo, mpi or nccl");
  return static_cast<BackendRequest>(found - kNames.begin());
}

BackendChoice choose_backend(std::span<const Capability> ranks) {
  FUSEDBUN_ASSERT(!ranks.empty(), "a backend is chosen for at least one rank");
  const BackendRequest request = common_request(ranks);
  if (request != BackendRequest::automatic) {
    const std::string obstacle = first_obstacle(ranks, request);
    const std::string name(name_of(request));
    FUSEDBUN_REQUIRE(obstacle.empty(), ConfigError,
                     "backend " + name + " cannot be used: " + obstacle +
                         (request == BackendRequest::nccl && !ranks[0].wants_gpu
                              ? "; NCCL connects GPUs: add --device cuda"
                              : ""));
    return {.backend = request, .reason = name + ": asked for"};
  }
  const std::string no_nccl = first_obstacle(ranks, BackendRequest::nccl);
  if (no_nccl.empty())
    return {.backend = BackendRequest::nccl, .reason = "nccl: every rank has a GPU of its own"};
  const std::string no_mpi = first_obstacle(ranks, BackendRequest::mpi);
  if (no_mpi.empty()) {
    return {.backend = BackendRequest::mpi,
            .reason = "mpi: Open MPI started this job and " + no_nccl};
  }
  const std::string no_gloo = first_obstacle(ranks, BackendRequest::gloo);
  FUSEDBUN_REQUIRE(no_gloo.empty(), ConfigError,
                   "no backend serves this job: " + no_nccl + ", " + no_mpi + ", " + no_gloo);
  return {.backend = BackendRequest::gloo, .reason = "gloo: " + no_nccl + " and " + no_mpi};
}

}  // namespace fusedbun::plan
