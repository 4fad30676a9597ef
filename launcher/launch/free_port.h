#pragma once
// A TCP port for the ranks' rendezvous.
//
// The port is only looked at, not held: between this look and the bind of rank 0 another process may take it, which
// rank 0 then reports itself.
//
// Thread safety: any thread.

namespace fusedbun::launch {

/// Returns `wanted`, or a port that is free now when `wanted` is 0. Throws UnavailableError when `wanted` is taken,
/// PermissionError when it may not be used.
int free_port(int wanted);

}  // namespace fusedbun::launch
