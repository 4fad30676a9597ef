#pragma once
// gRPC's own messages on standard error. It logs every failed connection, so a client without credentials could fill the job's
// log and its disk.
//
// Thread safety: a function that may be called from any thread.

namespace fusedbun::control {

/// From now on gRPC logs at most one line a minute in this process, with the number of lines it left out. Does nothing if
/// GRPC_VERBOSITY is set.
void limit_grpc_log();

}  // namespace fusedbun::control
