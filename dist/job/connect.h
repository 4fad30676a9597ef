#pragma once
// From an identity and a wish to connected ranks: rendezvous, capabilities, one collective choice, communicators.
//
// Thread safety: none; collective.
#include <chrono>
#include <memory>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"

namespace fusedbun {

struct ConnectOptions {
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  bool use_gpu = false;
  std::chrono::milliseconds timeout{
      60'000};  ///< of connecting, and of every wait until set_timeout
};

/// Owned channels. Members are destroyed in reverse order: data before the host channel it was set up over.
struct Connections {
  std::unique_ptr<comm::Communicator> rendezvous;  ///< MPI's, when the ranks then talk over Gloo
  std::unique_ptr<comm::StoreServer> store;        ///< rank 0's then: groups are made through it
  std::unique_ptr<comm::Communicator> host;
  std::unique_ptr<comm::Communicator> device;  ///< NCCL; null: the host channel carries data too
  plan::BackendChoice choice;
  bool one_host = true;     ///< all ranks are on it
  bool with_rank_0 = true;  ///< this rank is on rank 0's host

  comm::Communicator& data() { return device ? *device : *host; }
  /// Communicator::set_timeout of all of them.
  void set_timeout(std::chrono::milliseconds timeout);
};

/// From here on SIGPIPE is ignored where the program had left it alone. Throws ConfigError (a backend that cannot
/// hold everywhere, no address to meet at), UnavailableError, TimeoutError.
Connections connect(const plan::Identity& identity, const ConnectOptions& options);

}  // namespace fusedbun
