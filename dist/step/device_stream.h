#pragma once
// The stream on which torch issues work for a device, as communicators take it: which operations start after it, and which wait for
// them.
//
// Thread safety: any thread; streams are per thread.
#include <c10/core/Device.h>

#include "fusedbun/dist/comm/communicator.h"

namespace fusedbun {

/// The calling thread's current torch stream of `device`; none for CPUs.
comm::ProducerStream current_stream(at::Device device);

/// Waits for an operation: the host on CPUs, the current stream on a GPU. Nothing if it was waited for already.
void wait_for(comm::Work& work, at::Device device);

}  // namespace fusedbun
