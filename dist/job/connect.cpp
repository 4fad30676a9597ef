#include "fusedbun/dist/job/connect.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "fusedbun/core/error.h"
#include "fusedbun/core/host_name.h"
#include "fusedbun/dist/comm/broken_pipes.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/comm/local.h"
#include "fusedbun/dist/comm/records.h"
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
std::unique_ptr<comm::Communicator> connect_gloo_over_mpi(const plan::Identity& identity,
                                                          comm::Communicator& mpi, bool one_host,
                                                          const ConnectOptions& options) {
  struct Address {
    char host[256] = "127.0.0.1";
    int32_t port = 0;
  } address;
  std::unique_ptr<comm::StoreServer> server;
  if (identity.rank == 0) {
    if (!one_host) std::strncpy(address.host, host_name().c_str(), sizeof(address.host) - 1);
    server = comm::serve_store(address.host, 0);
    address.port = server->port();
  }
  address = comm::broadcast_record(mpi, address);
  auto gloo = comm::connect_gloo({.rank = identity.rank,
                                  .size = identity.world_size,
                                  .master_addr = address.host,
                                  .master_port = static_cast<uint16_t>(address.port),
                                  .serve_store = false,
                                  .timeout = options.timeout});
  mpi.barrier().wait();  // all are connected; the store may go
  return gloo;
}
#endif

}  // namespace

Connections connect(const plan::Identity& identity, const ConnectOptions& options) {
  comm::ignore_broken_pipes();  // whatever the backend
  Connections connections;
  connections.host = meet(identity, options);
  const plan::Capability mine = capability_of(identity, options.backend, options.use_gpu);
  const std::vector<plan::Capability> all = comm::gather_records(*connections.host, mine);
  connections.choice = plan::choose_backend(all);
  if (identity.world_size == 1 && !options.use_gpu) {
    connections.choice.reason = "local: one process, nothing travels";
  }
  connections.one_host = std::ranges::all_of(
      all, [&](const plan::Capability& rank) { return rank.host_hash == all[0].host_hash; });
#ifdef FUSEDBUN_HAS_MPI
  if (connections.choice.backend == plan::BackendRequest::gloo &&
      connections.host->backend() == "mpi") {
    connections.rendezvous = std::move(connections.host);
    connections.host =
        connect_gloo_over_mpi(identity, *connections.rendezvous, connections.one_host, options);
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

void share_outcome(comm::Communicator& host, const Outcome& of_rank_0) {
  struct Wire {
    int32_t code = 0;
    char message[508] = {};
  } wire;
  static_assert(sizeof(Wire) == 512);
  wire.code = of_rank_0.code;
  std::strncpy(wire.message, of_rank_0.message.c_str(), sizeof(wire.message) - 1);
  wire = comm::broadcast_record(host, wire);
  if (wire.code != 0) throw Error(static_cast<ExitCode>(wire.code), wire.message);
}

Outcome attempt(const std::function<void()>& action) {
  try {
    action();
    return {};
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.what()};
  } catch (const std::exception& error) {
    return {static_cast<int>(ExitCode::unclassified), error.what()};
  }
}

}  // namespace fusedbun
