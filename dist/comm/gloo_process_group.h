#pragma once
// A communicator over a process group that the caller already has. The only header of dist/comm that sees torch.
//
// Its groups share the process group's connections, since nothing can open new ones there: they have tags and a queue
// of their own, but a long message of one delays a short one of another between the same two ranks.
//
// Thread safety: as Communicator. While it lives, tags of 2^30 and above of point-to-point messages are its own; the
// group's owner is free to use those below, and collectives.
#include <chrono>
#include <memory>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun::comm {

/// `group` must carry messages of CPU tensors over Gloo (or be a mixed group whose cpu half is Gloo). All its
/// ranks wrap it. abort() closes its connections. Throws ConfigError if `group` is null.
std::unique_ptr<Communicator> wrap_process_group(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                 std::chrono::milliseconds timeout);

}  // namespace fusedbun::comm
