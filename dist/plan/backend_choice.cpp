#include "fusedbun/dist/plan/backend_choice.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

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
  return ranks[rank].wants_gpu ? "" : "runs on the CPU";
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
    FUSEDBUN_REQUIRE(ranks[rank].shares_gpu == ranks[0].shares_gpu, ConfigError,
                     name +
                         (ranks[rank].shares_gpu ? " may share a GPU, rank 0 may not"
                                                 : " may not share a GPU, rank 0 may") +
                         ": give all ranks the same --share-gpu");
  }
  return static_cast<BackendRequest>(ranks[0].request);
}

/// "rank 1 (on node3)".
std::string place_of(const Capability& capability, size_t rank) {
  const std::string name = "rank " + std::to_string(rank);
  return capability.host.empty() ? name
                                 : name + " (on " + std::string(capability.host.view()) + ")";
}
std::string place_of(std::span<const Capability> ranks, size_t rank) {
  return place_of(ranks[rank], rank);
}

/// Two ranks on one GPU, the first such pair; none if each has one of its own. Containers of one machine are hosts of their own and may
/// have the same GPU.
std::optional<std::pair<size_t, size_t>> first_on_one_gpu(std::span<const Capability> ranks) {
  std::map<GpuUuid, size_t> owner;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    const auto [found, is_new] = owner.try_emplace(ranks[rank].gpu_uuid, rank);
    if (!is_new) return {{found->second, rank}};
  }
  return std::nullopt;
}

void require_one_nccl(std::span<const Capability> ranks) {
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    FUSEDBUN_REQUIRE(ranks[rank].has_nccl, ConfigError,
                     place_of(ranks, rank) +
                         " has no NCCL built in, over which GPUs of several ranks talk: configure "
                         "with -DFUSEDBUN_WITH_NCCL=ON");
    FUSEDBUN_REQUIRE(ranks[rank].nccl_version == ranks[0].nccl_version, ConfigError,
                     place_of(ranks, rank) + " has NCCL " +
                         nccl_version_text(ranks[rank].nccl_version) + ", " + place_of(ranks, 0) +
                         " NCCL " + nccl_version_text(ranks[0].nccl_version) +
                         ": install the same LibTorch on all hosts");
  }
}

BackendChoice choose_for_gpus(std::span<const Capability> ranks, BackendRequest request) {
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    FUSEDBUN_REQUIRE(ranks[rank].gpu_ordinal >= 0, DeviceError,
                     no_gpu_sentence(ranks[rank], static_cast<int>(rank)));
  }
  const bool asks_for_nccl = request == BackendRequest::nccl;
  const bool needs_nccl = ranks.size() > 1 || asks_for_nccl;
  const bool moves_host_memory = !asks_for_nccl && request != BackendRequest::automatic;
  if (!needs_nccl && (moves_host_memory || !ranks[0].has_nccl)) {
    return {.backend = BackendRequest::gloo,
            .reason = "local: one process on one GPU, nothing travels"};
  }
  FUSEDBUN_REQUIRE(!moves_host_memory, ConfigError,
                   "backend " + std::string(name_of(request)) +
                       " cannot be used: it moves host memory, and the job's parameters are on "
                       "GPUs: leave --backend out, or add --device cpu");
  require_one_nccl(ranks);
  if (asks_for_nccl && ranks.size() == 1) return {BackendRequest::nccl, "nccl: asked for"};
  const auto on_one_gpu = first_on_one_gpu(ranks);
  if (!on_one_gpu) {
    return {BackendRequest::nccl,
            asks_for_nccl ? "nccl: asked for" : "nccl: every rank has a GPU of its own"};
  }
  const auto [first, second] = *on_one_gpu;
  const std::string shared = place_of(ranks, first) + " and " + place_of(ranks, second) +
                             " are on one GPU, " + to_text(ranks[first].gpu_uuid);
  FUSEDBUN_REQUIRE(ranks[0].shares_gpu, ConfigError,
                   shared +
                       ": start one rank per GPU, give each rank one of its own "
                       "(CUDA_VISIBLE_DEVICES), or let them share it (--share-gpu)");
  FUSEDBUN_REQUIRE(ranks[0].nccl_version >= kNcclSharesGpuSince, ConfigError,
                   shared + ", which NCCL " + nccl_version_text(ranks[0].nccl_version) +
                       " cannot do (2.30 can): start one rank per GPU");
  return {BackendRequest::nccl, "nccl: ranks share a GPU, as asked for"};
}

}  // namespace

std::string no_gpu_sentence(const Capability& capability, int rank) {
  return place_of(capability, static_cast<size_t>(rank)) +
         " has no GPU to use: " + std::string(capability.gpu_problem.view()) +
         "; --device cpu trains without";
}

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
  if (ranks[0].wants_gpu) return choose_for_gpus(ranks, request);
  if (request != BackendRequest::automatic) {
    const std::string obstacle = first_obstacle(ranks, request);
    const std::string name(name_of(request));
    FUSEDBUN_REQUIRE(
        obstacle.empty(), ConfigError,
        "backend " + name + " cannot be used: " + obstacle +
            (request == BackendRequest::nccl ? "; NCCL connects GPUs: add --device cuda" : ""));
    return {.backend = request, .reason = name + ": asked for"};
  }
  const std::string no_nccl = first_obstacle(ranks, BackendRequest::nccl);
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
