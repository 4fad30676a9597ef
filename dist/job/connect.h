#pragma once
// From an identity and a wish to connected ranks: rendezvous, capabilities, one collective choice, communicators.
//
// Thread safety: none; collective.
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "fusedbun/dist/comm/communicator.h"
#include "fusedbun/dist/comm/gloo.h"
#include "fusedbun/dist/job/capability.h"
#include "fusedbun/dist/plan/backend_choice.h"
#include "fusedbun/dist/plan/identity.h"
#include "fusedbun/dist/step/placement.h"

namespace fusedbun {

struct ConnectOptions {
  plan::BackendRequest backend = plan::BackendRequest::automatic;
  GpuUse gpu = {};
  std::string program = {};  ///< name and version of the program; must be equal on all ranks
  std::chrono::milliseconds timeout{
      60'000};  ///< of connecting (NCCL at least its own 300 s), and of the host's waits until set_timeout
  /// NCCL's watchdog has found a failure: by its thread.
  std::function<void(const comm::Failure&)> on_gpu_failure = [](const comm::Failure&) {};
};

/// Owned channels. Members are destroyed in reverse order: data before the host channel it was set up over.
struct Connections {
  std::unique_ptr<comm::Communicator> rendezvous;  ///< MPI's, when the ranks then talk over Gloo
  std::unique_ptr<comm::StoreServer> store;        ///< rank 0's then: groups are made through it
  std::unique_ptr<comm::Communicator> host;
  std::unique_ptr<comm::Communicator> device;  ///< NCCL; null: the host channel carries data too
  plan::BackendChoice choice;
  Placement placement;      ///< of this rank's parameters
  bool one_host = true;     ///< all ranks are on it
  bool with_rank_0 = true;  ///< this rank is on rank 0's host

  comm::Communicator& data() { return device ? *device : *host; }
  /// Communicator::set_timeout of those that move host memory, and of the GPU's.
  void set_timeout(std::chrono::milliseconds host_timeout, std::chrono::milliseconds gpu_timeout);
};

/// From here on SIGPIPE is ignored where the program had left it alone, and where ranks share GPUs NCCL_MULTI_RANK_GPU_ENABLE is set.
/// Throws ConfigError (a backend that cannot hold everywhere, no address to meet at, ranks of different builds), DeviceError (a rank without
/// a GPU to use), UnavailableError, TimeoutError.
Connections connect(const plan::Identity& identity, const ConnectOptions& options);

}  // namespace fusedbun
