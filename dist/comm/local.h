#pragma once
// Local communicators: ranks are threads of one process. The reference of the other backends, and
// what the tests of everything above run on.
//
// An operation is posted by leaving its pointers with the others; the last rank to arrive moves all
// data, in rank order, on its own thread. Ranks whose calls do not match get ConfigError naming
// both calls, on every rank.
//
// Thread safety: as Communicator; each rank's object belongs to its thread.
#include <chrono>
#include <memory>
#include <vector>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// Element r is rank r's. Aborting one rank, or a wait that runs out of time, breaks all of them;
/// groups made from them stand for themselves. Throws ConfigError unless size >= 1.
std::vector<std::unique_ptr<Communicator>> make_local_communicators(
    int size, std::chrono::milliseconds timeout = std::chrono::seconds(60));

/// The communicator of a job of one rank whose parameters are on a GPU: device() is cuda, and nothing ever moves, so
/// it needs neither NCCL nor the CUDA runtime. Operations are in place; one between two places is a ConfigError.
std::unique_ptr<Communicator> make_single_gpu_communicator();

}  // namespace fusedbun::comm
