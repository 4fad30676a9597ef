#pragma once
// From an identity and a wish to connected ranks: rendezvous, capabilities, one collective choice, communicators.
//
// Thread safety: none; collective.
#include <chrono>
#include <functional>
#include <memory>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"

namespace fusedbun {

struct ConnectOptions {
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  bool use_gpu = false;
  std::chrono::milliseconds timeout{60'000};
};

/// Owned channels. Members are destroyed in reverse order: data before the host channel it was set up over.
struct Connections {
  std::unique_ptr<comm::Communicator> rendezvous;  ///< MPI's, when the ranks then talk over Gloo
  std::unique_ptr<comm::Communicator> host;
  std::unique_ptr<comm::Communicator> device;  ///< NCCL; null: the host channel carries data too
  plan::BackendChoice choice;
  bool one_host = true;  ///< all ranks are on it

  comm::Communicator& data() { return device ? *device : *host; }
};

/// From here on SIGPIPE is ignored where the program had left it alone. Throws ConfigError (a backend that cannot
/// hold everywhere, no address to meet at), UnavailableError, TimeoutError.
Connections connect(const plan::Identity& identity, const ConnectOptions& options);

/// Rank 0 did something alone; all ranks learn how it went, and throw rank 0's error if it failed. Collective.
struct Outcome {
  int code = 0;  ///< ExitCode; 0: it went well
  std::string message;
};
void share_outcome(comm::Communicator& host, const Outcome& of_rank_0);
/// What rank 0 does alone, as something that can be told to all.
Outcome attempt(const std::function<void()>& action);

}  // namespace fusedbun
