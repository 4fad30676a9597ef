#pragma once
// Transports write to peers that may have gone: that is an error to be thrown, not the end of this process.
//
// Thread safety: any thread.
namespace fusedbun::comm {

/// From here on SIGPIPE is ignored, unless the program has a handler of its own.
void ignore_sigpipe();

}  // namespace fusedbun::comm
