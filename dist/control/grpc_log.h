#pragma once
// What gRPC itself writes on standard error. It tells of every connection that fails, so whoever reaches the port could fill
// the job's log, and the disk that it is on.
//
// Thread safety: a function that may be called from any thread.

namespace fusedbun::control {

/// From now on gRPC writes at most one line a minute in this process, with the number of those left out. Not where
/// GRPC_VERBOSITY is set: then somebody wants to see them all.
void limit_grpc_log();

}  // namespace fusedbun::control
