#include "fusedbun/dist/job/connect.h"

#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/comm/object_collectives.h"
#include "fusedbun/dist/comm/sigpipe.h"
#include "fusedbun/dist/job/capability.h"
#ifdef FUSEDBUN_HAS_MPI
#include "fusedbun/dist/comm/mpi.h"
#endif
#ifdef FUSEDBUN_HAS_NCCL
#include "fusedbun/dist/comm/nccl.h"
#endif

namespace fusedbun {
namespace {

std::unique_ptr<comm::Communicator> connect_at_store(const plan::Identity& identity,
                                                     const ConnectOptions& options) {
  FUSEDBUN_REQUIRE(identity.master_port > 0, ConfigError,
                   "rank " + std::to_string(identity.rank) + " of " +
                       std::to_string(identity.world_size) +
                       " does not know where to meet the others: set MASTER_ADDR and MASTER_PORT, "
                       "or start with fusedbun launch, torchrun or mpirun");
  return comm::connect_gloo(
      {.rank = identity.rank,
       .size = identity.world_size,
       .master_addr = identity.master_addr,
       .master_port = static_cast<uint16_t>(identity.master_port),
       .serve_store = !identity.agent_serves_store,
       // A store that rank 0 serves is new in each attempt, and launchers of several hosts may count their restarts apart.
       .run_id = identity.agent_serves_store
                     ? identity.run_id + "." + std::to_string(identity.restart_count)
                     : identity.run_id,
       .timeout = options.timeout});
}

/// The channel over which ranks first meet.
std::unique_ptr<comm::Communicator> meet(const plan::Identity& identity,
                                         const ConnectOptions& options) {
  if (identity.world_size == 1) {
    return std::move(comm::make_local_communicators(1, options.timeout).front());
  }
#ifdef FUSEDBUN_HAS_MPI
  if (identity.launcher == plan::Launcher::open_mpi) {
    return comm::connect_mpi({.timeout = options.timeout});
  }
#endif
  return connect_at_store(identity, options);
}

#ifdef FUSEDBUN_HAS_MPI
/// Gloo under mpirun: there is no MASTER_ADDR, so rank 0 serves a store and tells where over MPI.
std::unique_ptr<comm::Communicator> connect_gloo_over_mpi(
    const plan::Identity& identity, comm::Communicator& mpi, bool one_host,
    const ConnectOptions& options, std::unique_ptr<comm::StoreServer>& server) {
  std::string address = one_host ? "127.0.0.1" : host_name();
  comm::rethrow_on_all_ranks(mpi, [&] {
    if (identity.rank == 0) server = comm::serve_store(address, 0);
  });
  address = comm::broadcast_text(mpi, address, 0);
  const uint16_t port = comm::broadcast_object(mpi, server ? server->port() : uint16_t{0}, 0);
  return comm::connect_gloo({.rank = identity.rank,
                             .size = identity.world_size,
                             .master_addr = address,
                             .master_port = port,
                             .serve_store = false,
                             .timeout = options.timeout});
}
#endif

/// Must precede all other collectives: different builds may exchange messages of different layouts, or compute different bits.
void require_same_build(comm::Communicator& host, const std::string& program) {
  const std::string mine = (program.empty() ? "" : program + ", ") +
                           "library " FUSEDBUN_VERSION " with LibTorch " TORCH_VERSION;
  const std::string of_rank_0 = comm::broadcast_text(host, mine, 0);
  comm::rethrow_on_all_ranks(host, [&] {
    FUSEDBUN_REQUIRE(mine == of_rank_0, ConfigError,
                     "rank " + std::to_string(host.rank()) + " on " + host_name() +
                         " runs another build than rank 0: " + mine + "; rank 0: " + of_rank_0 +
                         "; install the same build on all hosts");
  });
}

Placement placement_of(const plan::Capability& mine) {
  if (mine.gpu_ordinal < 0) return {};
  return {.device = at::Device(at::kCUDA, static_cast<at::DeviceIndex>(mine.gpu_ordinal)),
          .gpu_uuid = mine.gpu_uuid == plan::GpuUuid{} ? "" : plan::to_text(mine.gpu_uuid)};
}

}  // namespace

void Connections::set_timeout(std::chrono::milliseconds host_timeout,
                              std::chrono::milliseconds gpu_timeout) {
  for (const auto* each : {&rendezvous, &host}) {
    if (*each) (*each)->set_timeout(host_timeout);
  }
  if (device) device->set_timeout(gpu_timeout);
}

Connections connect(const plan::Identity& identity, const ConnectOptions& options) {
  comm::ignore_sigpipe();  // whatever the backend
  // Before NCCL reads it, and before there are threads that might read the environment.
  if (options.gpu.use && options.gpu.share) ::setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
  Connections connections;
  connections.host = meet(identity, options);
  require_same_build(*connections.host, options.program);
  const plan::Capability mine = capability_of(identity, options.backend, options.gpu);
  const std::vector<plan::Capability> all = comm::all_gather_object(*connections.host, mine);
  connections.choice = plan::choose_backend(all);
  connections.placement = placement_of(mine);
  if (identity.world_size == 1 && !options.gpu.use) {
    connections.choice.reason = "local: one process, nothing travels";
  }
  if (options.gpu.use && connections.choice.backend != plan::BackendRequest::nccl) {
    connections.device = comm::make_single_gpu_communicator();  // there is one rank
  }
  connections.one_host = std::ranges::all_of(
      all, [&](const plan::Capability& rank) { return rank.host_hash == all[0].host_hash; });
  connections.with_rank_0 = mine.host_hash == all[0].host_hash;
#ifdef FUSEDBUN_HAS_MPI
  if (connections.choice.backend == plan::BackendRequest::gloo &&
      connections.host->backend() == "mpi") {
    connections.rendezvous = std::move(connections.host);
    connections.host = connect_gloo_over_mpi(identity, *connections.rendezvous,
                                             connections.one_host, options, connections.store);
  }
#endif
#ifdef FUSEDBUN_HAS_NCCL
  if (connections.choice.backend == plan::BackendRequest::nccl) {
    comm::NcclOptions nccl{.rank = identity.rank,
                           .size = identity.world_size,
                           .device = mine.gpu_ordinal,
                           .gpu = connections.placement.describe() + " on " + host_name(),
                           .on_failure = options.on_gpu_failure};
    nccl.timeout = std::max(nccl.timeout, options.timeout);
    connections.device = comm::connect_nccl(nccl, *connections.host);
  }
#endif
  return connections;
}

}  // namespace fusedbun
