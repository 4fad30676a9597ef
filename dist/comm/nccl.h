#pragma once
// The NCCL backend: device memory, one rank per GPU (or several, with NCCL_MULTI_RANK_GPU_ENABLE=1), without c10d.
//
// Operations run on a stream of the communicator's own, of high priority. One starts after the work that the caller's
// current stream holds at the call; Work::wait_on makes another stream wait by an event, so the host never waits.
//
// Invariants: 1. Sums are in NCCL's own order. 2. Equal portions take ncclReduceScatter and ncclAllGather, uneven
// ones one group of a reduce or broadcast per rank. 3. NCCL runs non-blocking, so that connecting and launching have
// deadlines too.
//
// Thread safety: as Communicator. Asynchronous errors are looked for at every launch and while the host waits.
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// The calling thread's legacy default stream, which torch uses unless told otherwise.
Stream default_stream();

struct NcclOptions {
  int rank = 0;
  int size = 1;
  int device = 0;  ///< CUDA index of this rank's GPU
  std::chrono::milliseconds timeout =
      std::chrono::seconds(300);  ///< of connecting; its first Communicator::timeout()
  /// The stream on which buffers are made ready, asked at every operation. With torch: the current CUDA stream's
  /// handle, or default_stream() where that handle is null.
  std::function<Stream()> producer_stream = default_stream;
};

/// Connects all ranks; collective over `host`, which has the same ranks and carries NCCL's id. Throws DeviceError (no
/// such GPU, NCCL or driver failed), TimeoutError, PeerLostError, ConfigError (rank and size differ from host's).
std::unique_ptr<Communicator> connect_nccl(const NcclOptions& options, Communicator& host);

/// What this process could do with NCCL.
struct NcclAbility {
  int device_count = 0;
  std::string problem;  ///< why there is no device; empty if there is one
};
NcclAbility probe_nccl();

}  // namespace fusedbun::comm
