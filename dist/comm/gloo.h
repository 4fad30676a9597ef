#pragma once
// The Gloo backend: host memory over TCP, through the process groups of libtorch (c10d). Ranks find one another
// through a key-value store (c10d's TCPStore) that rank 0 or, under torchrun, the agent serves.
//
// Only point-to-point messages of Gloo are used; message_communicator makes the collectives of them, because Gloo's own
// reduce-scatter moves twice the bytes and adds in no fixed order.
//
// A group has a process group of its own, whose ranks connect through the same store: it must stay reachable as long
// as groups may be made. What connect_gloo serves itself lives as long as the communicators made from it.
//
// Thread safety: as Communicator.
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

struct GlooOptions {
  int rank = 0;
  int size = 1;
  std::string master_addr = "127.0.0.1";  ///< where the store is served
  uint16_t master_port = 29500;
  /// Rank 0 serves the store. Off where somebody else does: torchrun's agent, or a StoreServer.
  bool serve_store = true;
  /// Tells jobs, and attempts of one job, apart on one store.
  std::string run_id = "fusedbun";
  std::chrono::milliseconds timeout =
      std::chrono::seconds(60);  ///< of connecting; its first Communicator::timeout()
};

/// Connects all ranks; collective. Over the loopback interface when master_addr is loopback, so that it needs neither
/// DNS nor a network; else over the interface that leads to master_addr, or $GLOO_SOCKET_IFNAME. Throws
/// UnavailableError (port in use, store not reachable in time), ConfigError (rank outside the world, two processes
/// with one rank, sizes that differ), TimeoutError (names the ranks that did not come), PeerLostError. From here on
/// SIGPIPE is ignored where the program had left it alone.
std::unique_ptr<Communicator> connect_gloo(const GlooOptions& options);

/// A store that this process serves for others, as long as the object lives: for launches that have no torchrun agent.
class StoreServer {
 public:
  virtual ~StoreServer() = default;
  /// The port actually bound.
  virtual uint16_t port() const = 0;
};

/// Serves on loopback only if `address` is loopback, else on all interfaces. Port 0 takes a free one. Throws
/// UnavailableError naming the address if it is in use.
std::unique_ptr<StoreServer> serve_store(const std::string& address, uint16_t port);

}  // namespace fusedbun::comm
