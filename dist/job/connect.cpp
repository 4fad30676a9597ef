#include "fusedbun/dist/job/connect.h"

#include <algorithm>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/broken_pipes.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/comm/object_collectives.h"
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
       .run_id = identity.run_id + "." + std::to_string(identity.restart_count),
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

}  // namespace

void Connections::set_timeout(std::chrono::milliseconds timeout) {
  for (const auto* each : {&rendezvous, &host, &device}) {
    if (*each) (*each)->set_timeout(timeout);
  }
}

Connections connect(const plan::Identity& identity, const ConnectOptions& options) {
  comm::ignore_broken_pipes();  // whatever the backend
  Connections connections;
  connections.host = meet(identity, options);
  const plan::Capability mine = capability_of(identity, options.backend, options.use_gpu);
  const std::vector<plan::Capability> all = comm::all_gather_object(*connections.host, mine);
  connections.choice = plan::choose_backend(all);
  if (identity.world_size == 1 && !options.use_gpu) {
    connections.choice.reason = "local: one process, nothing travels";
  }
  if (identity.world_size == 1 && options.use_gpu &&
      connections.choice.backend != plan::BackendRequest::nccl) {
    connections.device = comm::make_single_gpu_communicator();
    connections.choice.reason = "local: one process on one GPU, nothing travels";
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
    connections.device = comm::connect_nccl({.rank = identity.rank,
                                             .size = identity.world_size,
                                             .device = mine.gpu_index,
                                             .timeout = options.timeout},
                                            *connections.host);
  }
#endif
  return connections;
}

}  // namespace fusedbun
