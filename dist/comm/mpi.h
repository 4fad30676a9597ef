#pragma once
// The Open MPI backend: host memory, for ranks that mpirun (or srun with PMIx) started.
//
// Only point-to-point messages of MPI are used; message_communicator makes the collectives of them, so sums have one
// order and operations progress on a thread of their own while the caller computes.
//
// Invariants: 1. MPI is initialised once per process, by the first connect_mpi unless the program did it before. 2.
// What connect_mpi initialised is finalised when the last communicator is destroyed without a failure. After a failure
// it is not: MPI_Finalize would wait for ranks that are gone. The process then exits with its own exit code, and
// mpirun ends the others.
//
// Thread safety: as Communicator; MPI runs with MPI_THREAD_MULTIPLE.
#include <chrono>
#include <memory>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

struct MpiOptions {
  std::chrono::milliseconds timeout =
      std::chrono::seconds(60);  ///< of connecting; its first Communicator::timeout()
};

/// A communicator of all ranks of MPI_COMM_WORLD, on a duplicate of it; collective. Throws ConfigError when the program
/// initialised MPI with less than MPI_THREAD_MULTIPLE, or MPI was finalised already; UnavailableError when MPI cannot.
std::unique_ptr<Communicator> connect_mpi(const MpiOptions& options = {});

}  // namespace fusedbun::comm
