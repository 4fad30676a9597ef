#pragma once
// The NCCL backend: device memory, one rank per GPU (or several, with NCCL_MULTI_RANK_GPU_ENABLE=1), without c10d.
//
// Operations run on a stream of the communicator's own, of high priority. One starts after the work that the caller's `producer`
// stream holds at the call; Work::wait_on makes another stream wait by an event, so the host never waits.
//
// Invariants: 1. Sums are in NCCL's own order. 2. Equal portions take ncclReduceScatter and ncclAllGather, uneven
// ones one group of a reduce or broadcast per rank. 3. NCCL runs non-blocking, so that connecting and launching have
// deadlines too. 4. Every operation has a deadline, its communicator's timeout() at the call, whether the host waits for it or not: a
// watchdog thread polls (as c10d's ProcessGroupNCCL does), and breaks the communicator when the oldest operation is overdue or NCCL
// reports an asynchronous error. The deadline counts from the launch or from the end of the operation before, whichever is later;
// what the producer stream still has to do counts as well.
//
// Thread safety: as Communicator. abort() returns at once; the watchdog aborts NCCL.
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  int device = 0;        ///< CUDA ordinal of this rank's GPU
  std::string gpu = {};  ///< how messages call it, "cuda:1 (GPU-6f1c...) on node3"; empty: "GPU 1"
  /// Of connecting and of each launch (NCCL connects some ranks at their first operation); also the first Communicator::timeout().
  std::chrono::milliseconds timeout = std::chrono::seconds(300);
  /// The watchdog found the failure, so perhaps nobody waits for it: called once, by its thread, before NCCL is aborted. Groups have
  /// the same.
  std::function<void(const Failure&)> on_failure = [](const Failure&) {};
};

/// Connects all ranks; collective over `host`, which has the same ranks and carries NCCL's id. Throws DeviceError (no
/// such GPU, NCCL or driver failed), TimeoutError, PeerLostError, ConfigError (rank and size differ from host's).
std::unique_ptr<Communicator> connect_nccl(const NcclOptions& options, Communicator& host);

}  // namespace fusedbun::comm
