#pragma once
// A communicator over a process group that the caller already has. The only header of dist/comm that sees torch.
//
// Thread safety: as Communicator. While it lives, tags below 2^23 of point-to-point messages are its own; the group's
// owner is free to use other tags, and collectives.
#include <chrono>
#include <memory>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// `group` must carry messages of CPU tensors (gloo, mpi, or a mixed group whose cpu half is one of them). All its
/// ranks wrap it. abort() closes its connections. Throws ConfigError if `group` is null.
std::unique_ptr<Communicator> wrap_process_group(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                 std::chrono::milliseconds timeout);

}  // namespace fusedbun::comm
